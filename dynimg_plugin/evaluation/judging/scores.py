"""The numbers that follow from verdicts: one place for tasks, `dynimg judge` and `dynimg report`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dynimg_plugin.evaluation.judging.protocols import ASPECTS, JudgeRequest
from dynimg_plugin.evaluation.judging.reading import Verdict

MAX_FAILED = 0.01  # share of requests without a verdict above which a run counts as failed
Interval = tuple[float, float] | None


class JudgeFailed(ValueError):
    """More requests than MAX_FAILED have no verdict."""


@dataclass(frozen=True)
class Scores:
    """Numbers of one protocol on one set of requests; what was not judged is in no mean.

    Attributes:
        total: requests; `judged` + `failed`.
        accuracy: percent of the judged that are right; None under the five aspects or without any verdict.
        score: mean of the judged, 0 to 5; None without any verdict.
        accuracy_interval, score_interval: 95 %, from whole videos drawn anew; None with fewer than two videos.
        reasons: why requests failed, and how many.
    """

    total: int
    judged: int
    failed: int
    accuracy: float | None
    score: float | None
    accuracy_interval: Interval
    score_interval: Interval
    reasons: dict[str, int]

    @property
    def failed_share(self) -> float:
        """0 to 1; 0 where nothing was asked."""
        return self.failed / self.total if self.total else 0.0

    def check(self) -> None:
        """Raise JudgeFailed when more than MAX_FAILED of the requests have no verdict."""
        if self.failed_share > MAX_FAILED:
            commonest = max(self.reasons, key=lambda reason: self.reasons[reason])
            raise JudgeFailed(
                f"judge_failed: {self.failed} of {self.total} requests have no verdict, more than {MAX_FAILED:.0%} "
                f"(most often: {commonest}); mend the judge and run again, only these will be asked"
            )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "failed_share": self.failed_share}


def score(requests: Sequence[JudgeRequest], verdicts: Sequence[Verdict], *, seed: int = 0) -> Scores:
    """Accuracy, mean score and failures of requests of one protocol."""
    pairs = [(r, v) for r, v in zip(requests, verdicts, strict=True) if v.failed is None]
    videos = [request.video for request, _ in pairs]
    points = [float(verdict.score or 0.0) for _, verdict in pairs]
    right = [100.0 * verdict.correct for _, verdict in pairs if verdict.correct is not None]
    if right and len(right) != len(pairs):
        raise ValueError("qa requests and those of the five aspects have no common accuracy; score each protocol apart")
    return Scores(
        total=len(requests),
        judged=len(pairs),
        failed=len(requests) - len(pairs),
        accuracy=_mean(right),
        score=_mean(points),
        accuracy_interval=bootstrap(right, videos, seed=seed) if right else None,
        score_interval=bootstrap(points, videos, seed=seed),
        reasons=dict(Counter(verdict.failed for verdict in verdicts if verdict.failed is not None).most_common()),
    )


def aspect_averages(aspects: Mapping[str, Scores]) -> dict[str, float | None]:
    """Both readings of Video-ChatGPT's average; None while an aspect has no verdict.

    `aspect_mean` weighs the five aspects alike. `per_judgement` weighs every verdict alike, so that correctness, detail
    and context count about four times as much as temporal and consistency (PLLaVA's published 3.48 for its 34B is of
    this kind; its aspect mean is 3.32).
    """
    found = [aspects[name] for name in ASPECTS if name in aspects and aspects[name].score is not None]
    if len(found) < len(ASPECTS):
        return {"aspect_mean": None, "per_judgement": None}
    total = sum(float(one.score or 0.0) * one.judged for one in found)
    return {
        "aspect_mean": _mean([float(one.score or 0.0) for one in found]),
        "per_judgement": total / sum(one.judged for one in found),
    }


def bootstrap(
    values: Sequence[float],
    videos: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """95 % confidence interval of a mean. Questions about one video hang together, so whole videos are drawn anew.

    Args:
        values: one number per question.
        videos: the video of each; the clusters.
        groups: with them, the mean of the groups' means (five aspects, MVBench's 20 tasks) instead of the plain mean.

    Returns:
        (low, high), or None with fewer than two videos.
    """
    names, cluster = np.unique(np.asarray(videos, dtype=str), return_inverse=True)
    if len(names) < 2:
        return None
    _, group = np.unique(np.asarray(groups or [""] * len(values), dtype=str), return_inverse=True)
    sums = np.zeros((len(names), group.max() + 1))
    counts = np.zeros_like(sums)
    np.add.at(sums, (cluster, group), values)
    np.add.at(counts, (cluster, group), 1)
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        weights = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))
        total = weights @ counts
        means.append(((weights @ sums)[total > 0] / total[total > 0]).mean())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
