"""What the running evaluation shares: the model's settings reach the tasks, its measurements reach the record.

lmms-eval makes the model before the tasks and hands nothing from one to the other, so there is one evaluation per
process: the model that was made last.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dynimg_plugin.evaluation.judging import Judge


@dataclass(frozen=True)
class Settings:
    """What a user says of the data and of the judge; model arguments of llava_dynimg and options of `dynimg eval`.

    Attributes:
        data_root: folder that holds the benchmarks; without it those are loaded that the hub has.
        prompts: replaces the variant that the tasks' YAMLs name.
        judge_url, judge_model: an OpenAI-compatible server and the name of a model there; both or neither.
        judge_cache: folder of the judge's replies.
        judge_concurrency: requests at a time. judge_timeout: seconds that one may take.
        judge_max_tokens: length of a reply; judges that think first need room.
    """

    data_root: str | None = None
    prompts: str | None = None
    judge_url: str | None = None
    judge_model: str | None = None
    judge_cache: str | None = None
    judge_concurrency: int = 8
    judge_timeout: float = 60.0
    judge_max_tokens: int = 1024

    @classmethod
    def names(cls) -> list[str]:
        return [one.name for one in fields(cls)]

    def __post_init__(self) -> None:
        if (self.judge_url is None) is not (self.judge_model is None):
            raise ValueError(
                f"judge_url={self.judge_url} came with judge_model={self.judge_model}; give both, or neither for a "
                "run without judge (dynimg judge can judge its answers later)"
            )
        if self.data_root is not None and not Path(self.data_root).is_dir():
            raise FileNotFoundError(f"data_root={self.data_root} is no folder; give the one that holds the benchmarks")


@dataclass
class Measurements:
    """Counts and seconds of one process; threads may add to them."""

    videos: int = 0
    frames: int = 0
    iframes: int = 0
    questions: int = 0
    reused: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    unreadable: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add_video(self, record: dict[str, Any], seconds: dict[str, float]) -> None:
        """Count a composed video: its record (see DynImg) and what it cost."""
        with self._lock:
            self.videos += 1
            self.frames += record["unique_frames"]
            self.iframes += record["iframes_used"]
            for part, spent in seconds.items():
                self.seconds[part] += spent

    def add(self, part: str, seconds: float) -> None:
        """Count time spent on a part."""
        with self._lock:
            self.seconds[part] += seconds

    def summary(self, tokens_per_video: int) -> dict[str, Any]:
        """For the record. A video is decoded and composed once, and seen and answered about once per question."""
        each = dict.fromkeys(("decode", "compose"), self.videos) | dict.fromkeys(("vision", "answer"), self.questions)
        spent = {part: self.seconds[part] / n if n and part in self.seconds else None for part, n in each.items()}
        answer, vision = spent.pop("answer"), spent["vision"]
        spent["language"] = answer if answer is None or vision is None else answer - vision
        return {
            "videos": self.videos,
            "questions": self.questions,
            "answers_reused": self.reused,
            "tokens_per_video": tokens_per_video,
            "iframe_share": self.iframes / self.frames if self.frames else None,
            "seconds_per_video": spent,
        }


@dataclass
class Evaluation:
    """The evaluation of this process.

    Attributes:
        facts: fields of RunRecord that the model knows: checkpoint, adapter, dtype, device, dynimg.
        tokens_per_video: visual tokens; 0 when the model is not llava_dynimg.
        tasks: name -> fields of its TaskRecord.
    """

    settings: Settings = field(default_factory=Settings)
    facts: dict[str, Any] = field(default_factory=dict)
    tokens_per_video: int = 0
    measured: Measurements = field(default_factory=Measurements)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    _judge: Judge | None = None

    def the_judge(self) -> Judge:
        """The judge that the settings name, the same object every time."""
        if self._judge is None:
            given = self.settings
            if given.judge_url is None or given.judge_model is None:
                raise ValueError("no judge is named; give judge_url and judge_model")
            self._judge = Judge(
                given.judge_url,
                given.judge_model,
                cache_dir=given.judge_cache or judge_cache(),
                concurrency=given.judge_concurrency,
                timeout=given.judge_timeout,
                max_tokens=given.judge_max_tokens,
            )
        return self._judge

    def summary(self) -> dict[str, Any] | None:
        """Measurements for the record; None for models that make none."""
        return self.measured.summary(self.tokens_per_video) if self.facts else None


def judge_cache() -> Path:
    """Where replies of judges are kept unless told otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dynimg_plugin" / "judge"


_current = [Evaluation()]


def current() -> Evaluation:
    """The evaluation that runs; one without any setting when no model was made yet."""
    return _current[0]


def begin(evaluation: Evaluation) -> Evaluation:
    """Make an evaluation the current one."""
    _current[0] = evaluation
    return evaluation
