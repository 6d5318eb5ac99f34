"""What the running evaluation shares: the model's settings reach the tasks, its measurements reach the record.

lmms-eval makes the model before the tasks and hands nothing from one to the other, so there is one evaluation per
process: the model that was made last.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

PARTS = ("decode", "compose", "vision", "language")


@dataclass(frozen=True)
class Settings:
    """What a user says of the data and of the judge; model arguments of llava_dynimg and options of `dynimg eval`.

    Attributes:
        data_root: folder that holds the benchmarks; without it those are loaded that the hub has.
        prompts: replaces the variant that the tasks' YAMLs name.
        judge_url, judge_model: an OpenAI-compatible server and the name of a model there; both or neither.
        judge_cache: folder of the judge's replies.
        judge_concurrency: requests at a time. judge_timeout: seconds that one may take.
    """

    data_root: str | None = None
    prompts: str | None = None
    judge_url: str | None = None
    judge_model: str | None = None
    judge_cache: str | None = None
    judge_concurrency: int = 8
    judge_timeout: float = 60.0

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

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time spent inside to a part."""
        began = perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[part] += perf_counter() - began

    def summary(self, tokens_per_video: int) -> dict[str, Any]:
        """For the record. Vision and language run once per question, decode and compose once per video."""
        runs = {"decode": self.videos, "compose": self.videos, "vision": self.questions, "language": self.questions}
        return {
            "videos": self.videos,
            "questions": self.questions,
            "answers_reused": self.reused,
            "tokens_per_video": tokens_per_video,
            "iframe_share": self.iframes / self.frames if self.frames else None,
            "seconds_per_video": {
                part: self.seconds[part] / runs[part] if part in self.seconds and runs[part] else None
                for part in PARTS
            },
        }


@dataclass
class Evaluation:
    """The evaluation of this process.

    Attributes:
        facts: fields of RunRecord that the model knows: checkpoint, adapter, dtype, device, dynimg.
    """

    settings: Settings = field(default_factory=Settings)
    facts: dict[str, Any] = field(default_factory=dict)
    measured: Measurements | None = None


_current = [Evaluation()]


def current() -> Evaluation:
    """The evaluation that runs; one without any setting when no model was made yet."""
    return _current[0]


def begin(evaluation: Evaluation) -> Evaluation:
    """Make an evaluation the current one."""
    _current[0] = evaluation
    return evaluation
