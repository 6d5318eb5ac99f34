"""The numbers that follow from verdicts: one place for tasks, `dynimg judge` and `dynimg report`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynimg_plugin.evaluation.judging.protocols import ASPECTS, JudgeRequest
from dynimg_plugin.evaluation.judging.reading import Verdict

MAX_FAILED = 0.01  # share of requests without a verdict above which a run counts as failed
QA_METRICS = ("accuracy", "score")
ASPECT_METRICS = (*ASPECTS, "aspect_mean", "per_judgement")
Interval = tuple[float, float] | None


class JudgeFailed(ValueError):
    """More requests than MAX_FAILED have no verdict."""


@dataclass(frozen=True)
class Summary:
    """The numbers of some requests; what was not judged is in no mean.

    Attributes:
        metrics: under protocol qa `accuracy` (percent) and `score` (0 to 5). Under the five aspects the score of each,
            `aspect_mean`, which weighs the five alike, and `per_judgement`, which weighs every verdict alike, so that
            correctness, detail and context count about four times as much as temporal and consistency (PLLaVA's 3.48
            for its 34B is of this kind, its aspect mean is 3.32). None: no verdict, or for both averages not of every
            aspect.
        intervals: 95 % each, from whole videos drawn anew; None with fewer than two videos.
        total, failed: requests, and those without a verdict.
        reasons: why, and how many.
    """

    metrics: dict[str, float | None]
    intervals: dict[str, Interval]
    total: int
    failed: int
    reasons: dict[str, int]

    @property
    def failed_share(self) -> float:
        """0 to 1; 0 where nothing was asked."""
        return self.failed / self.total if self.total else 0.0

    def check(self) -> None:
        """Raise JudgeFailed when more than MAX_FAILED of the requests have no verdict."""
        if self.failed_share > MAX_FAILED:
            raise JudgeFailed(
                f"judge_failed: {self.failed} of {self.total} requests have no verdict, more than {MAX_FAILED:.0%} "
                f"(most often: {next(iter(self.reasons))}); mend the judge and run again, only these will be asked"
            )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "failed_share": self.failed_share}


def summarise(requests: Sequence[JudgeRequest], verdicts: Sequence[Verdict], *, seed: int = 0) -> Summary:
    """All numbers of requests and their verdicts; see Summary."""
    judged = [pair for pair in zip(requests, verdicts, strict=True) if pair[1].failed is None]
    metrics: dict[str, float | None] = {}
    intervals: dict[str, Interval] = {}
    for name, rows in _measures({request.protocol for request in requests}, judged):
        values, videos, groups = zip(*rows, strict=True) if rows else ((), (), ())
        metrics[name] = mean(values, groups)
        intervals[name] = bootstrap(values, videos, groups, seed=seed)
    reasons = Counter(verdict.failed for verdict in verdicts if verdict.failed is not None)
    return Summary(metrics, intervals, len(requests), len(requests) - len(judged), dict(reasons.most_common()))


def _measures(
    protocols: set[str], judged: list[tuple[JudgeRequest, Verdict]]
) -> Iterator[tuple[str, list[tuple[float, str, str]]]]:
    """Each metric's name and its (value, video, group) rows."""
    rows: dict[str, list[tuple[float, str, str]]] = defaultdict(list)
    for request, verdict in judged:
        rows[request.protocol].append((float(verdict.score or 0), request.video, request.protocol))
    if "qa" in protocols:
        yield "accuracy", [(100.0 * bool(v.correct), r.video, "qa") for r, v in judged if r.protocol == "qa"]
        yield "score", rows["qa"]
    if protocols & set(ASPECTS):
        yield from ((aspect, rows[aspect]) for aspect in ASPECTS if aspect in protocols)
        together = [row for aspect in ASPECTS for row in rows[aspect]] if all(rows[a] for a in ASPECTS) else []
        yield "aspect_mean", together
        yield "per_judgement", [(value, video, "") for value, video, _ in together]


def mean(values: Sequence[float], groups: Sequence[str]) -> float | None:
    """The mean of the groups' means; None without values."""
    sums, counts = _table(values, [""] * len(values), groups)
    return float((sums / counts).mean()) if len(values) else None


def bootstrap(
    values: Sequence[float], videos: Sequence[str], groups: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """95 % confidence interval of `mean`. Questions about one video hang together, so whole videos are drawn anew.

    Args:
        values: one number per question.
        videos: the video of each; the clusters.
        groups: the aspect, or MVBench's task, of each; all the same for a plain mean.

    Returns:
        (low, high), or None with fewer than two videos.
    """
    sums, counts = _table(values, videos, groups)
    clusters = len(sums)
    if clusters < 2:
        return None
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        weights = np.bincount(generator.integers(clusters, size=clusters), minlength=clusters)
        drawn = weights @ counts
        means.append(((weights @ sums)[drawn > 0] / drawn[drawn > 0]).mean())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _table(values: Sequence[float], videos: Sequence[str], groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of the values, videos x groups."""
    names, row = np.unique(np.asarray(videos, dtype=str), return_inverse=True)
    kinds, column = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums, counts = np.zeros((2, len(names), len(kinds)))
    np.add.at(sums, (row, column), np.asarray(values, dtype=float))
    np.add.at(counts, (row, column), 1)
    return sums, counts
