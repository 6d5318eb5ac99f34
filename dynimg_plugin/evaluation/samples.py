"""One question with its answer: what lmms-eval's sample files keep of it, and the numbers that need no judge.

In `<date>_samples_<task>.jsonl` (`--log_samples`) the key `answered` of every line holds `Sample.to_dict()`: enough to
judge the answers later, and to compute every number again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from dynimg_plugin.evaluation.judging.scores import mean

UNREADABLE = "[the video could not be read]"  # an answer that tasks can tell from a wrong one
KEY = "answered"  # the metric under which a sample is kept
CATEGORY = "accuracy_"  # + the name of one of MVBench's tasks
Marks = tuple[list[float], list[str], list[str]]


@dataclass(frozen=True)
class Sample:
    """One question about one video, answered.

    Attributes:
        video: the video's name; intervals are clustered by it.
        unreadable: the video could not be read, so nobody answered: neither right nor wrong, and never judged.
        category: the task of MVBench that it belongs to.
        marks: metric -> 0.0 or 100.0, for the metrics that need no judge and that this question counts for.
        requests: what to ask a judge, as keyword arguments of JudgeRequest.
    """

    video: str
    unreadable: bool = False
    category: str | None = None
    marks: dict[str, float] = field(default_factory=dict)
    requests: tuple[dict[str, Any], ...] = ()

    def __str__(self) -> str:
        """What lmms-eval writes in a judged metric's place: the sample itself stands under `answered`."""
        return f"see {KEY!r}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `score` is what lmms-eval takes a metric's standard error from."""
        return {"score": 0.0 if self.unreadable else 100.0, **asdict(self), "requests": list(self.requests)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        fields = {name: value for name, value in values.items() if name != "score"}
        return cls(**{**fields, "requests": tuple(fields["requests"])})


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file that lmms-eval wrote for one of the six benchmarks.

    Raises:
        ValueError: a line is no JSON or holds no sample; it names the line.
    """
    samples = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            samples.append(Sample.from_dict(json.loads(line)[KEY]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: no answer of one of the six benchmarks ({error!r}); give "
                "a *_samples_<task>.jsonl of theirs that was written with --log_samples"
            ) from error
    return samples


def judge_free(samples: Iterable[Sample]) -> dict[str, float | None]:
    """Means in percent of all metrics that need no judge."""
    return {metric: mean(marks, groups) for metric, (marks, _, groups) in marks_by_metric(samples).items()}


def marks_by_metric(samples: Iterable[Sample]) -> dict[str, Marks]:
    """Metric -> marks, and video and group of each, as `mean` and `bootstrap` take them.

    `answered` counts every question; the others only those whose video could be read. With categories,
    `accuracy_micro` is the mean over questions, and `accuracy_macro`, whose groups they are, the mean of their means.
    """
    found: dict[str, Marks] = defaultdict(lambda: ([], [], []))
    for sample in samples:
        rows = [(KEY, 0.0 if sample.unreadable else 100.0, "")]
        rows += [(metric, mark, "") for metric, mark in sample.marks.items()]
        rows += [("accuracy_macro", mark, metric) for metric, mark in sample.marks.items() if is_category(metric)]
        for metric, mark, group in rows:
            marks, videos, groups = found[metric]
            marks.append(mark)
            videos.append(sample.video)
            groups.append(group)
    return dict(found)


def is_category(metric: str) -> bool:
    """Whether a metric is the accuracy of one of MVBench's tasks."""
    return metric.startswith(CATEGORY) and metric not in ("accuracy_micro", "accuracy_macro")
