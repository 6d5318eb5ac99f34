"""The result record: what a run was and what it gave, one JSON file beside lmms-eval's own results.

`<date>_results.json` of lmms-eval gets `<date>_dynimg_record.json`; `dynimg judge` and `dynimg report` read it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from dynimg_plugin.evaluation.disk import write

FORMAT_VERSION = 1
RESULTS, RECORD = "_results.json", "_dynimg_record.json"


@dataclass
class TaskRecord:
    """One task of a run.

    Attributes:
        scores: metric -> value; accuracies in percent, judged scores 0 to 5. None: no question counted for it.
        questions: asked in this run. expected: questions of the whole split, as its YAML names them.
        split, prompts, source: which data, put how, read from where.
        unreadable: video -> why it could not be read; its questions count in no score.
        unanswered: questions about those videos.
        judge: Judge.identity; None when nothing was judged.
        judge_failed: share (0 to 1) of the judge's requests without a verdict; None when nothing was judged.
        intervals: metric -> 95 % (low, high) clustered by video, for the judged ones (`Summary.intervals`).
        samples: name of the file beside the record that holds every answer; None when answers were not logged.
    """

    scores: dict[str, float | None]
    questions: int
    expected: int | None = None
    split: str | None = None
    prompts: str | None = None
    source: str | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    unanswered: int = 0
    judge: dict[str, Any] | None = None
    judge_failed: float | None = None
    intervals: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    samples: str | None = None


@dataclass
class RunRecord:
    """A run of one model on some tasks.

    Attributes:
        date: when lmms-eval wrote its results, as it names them.
        model: lmms-eval's name of the model. checkpoint, adapter: hub ids or folders. dtype, device: as loaded.
        dynimg: every DynImg option. None when the model was not llava_dynimg.
        arguments: lmms-eval's own settings: limit, gen_kwargs, batch size, seeds, ...
        versions: of the packages that decide the numbers.
        measured: videos, questions, tokens_per_video, iframe_share (0 to 1) and seconds_per_video by part (decode,
            compose, vision, language) as measured by rank 0. None for other models; parts are None where not measured.
        tasks: by name.
    """

    date: str
    model: str
    tasks: dict[str, TaskRecord]
    checkpoint: str | None = None
    adapter: str | None = None
    dtype: str | None = None
    device: str | None = None
    dynimg: dict[str, Any] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    measured: dict[str, Any] | None = None

    def save(self, path: Path) -> Path:
        """Write as JSON; the file appears complete or not at all."""
        return write(path, json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2, ensure_ascii=False))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record.

        Raises:
            ValueError: no record, or one of another format.
        """
        try:
            values = json.loads(path.read_text("utf-8"))
            found = values.pop("format_version", None)
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is no result record ({error})") from error
        if found != FORMAT_VERSION:
            raise ValueError(f"{path} has format_version {found}, this release reads {FORMAT_VERSION}")
        if unknown := set(values) - {one.name for one in fields(cls)}:
            raise ValueError(f"{path} holds unknown fields: {', '.join(sorted(unknown))}")
        return cls(**{**values, "tasks": {name: TaskRecord(**task) for name, task in values["tasks"].items()}})


def find_records(folder: Path) -> list[Path]:
    """All records under a folder, oldest first."""
    return sorted(folder.rglob(f"*{RECORD}"), key=lambda path: path.name)
