"""Which arms are compared, and how: paired by seed, t intervals, Holm's correction over all pairs.

A pair, and the measure that the correction and the claims rest on (the mean over all questions), was written down
before its first run. The groups of questions and the mean along the learning curve are reported beside it, uncorrected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy import stats

from .records import ALL, CURVE, MEASURES, Arm, Arms, in_order, measured

CONFIDENCE = 0.95
DEFAULT_THETA_RATE = 1e-2
# Regimes of `rope`.
PLANNED = ("fixed", "dropped", "shuffled", "order", "order_time", "irregular_slot", "irregular_time", "stills")
DIGITS = 9  # differences of accuracies that are equal may still differ by rounding


@dataclass(frozen=True)
class Pair:
    """`better` minus `other`; the names say what somebody may hope for, no sign is assumed."""

    name: str
    better: Arm
    other: Arm


def _fusion(better: str, other: str) -> Pair:
    return Pair(f"{better} - {other}", Arm("fusion", better), Arm("fusion", other))


def _number(experiment: str, words: str, other: int) -> Pair:
    return Pair(f"4 - {other} {words}", Arm(experiment, "4"), Arm(experiment, str(other)))


def _rope(experiment: str, regime: str) -> Pair:
    return Pair(f"4D - 1D RoPE, {regime}", Arm(experiment, "4d", regime), Arm(experiment, "1d", regime))


PAIRS = (
    _fusion("after", "none"),
    *(_fusion("canvas", other) for other in ("none", "after", "canvas_apart", "tokens", "frames_16", "image_grid")),
    *(_rope("rope", regime) for regime in PLANNED),
    _rope("lora", "lora"),
    Pair("axis split - 1D RoPE", Arm("fusion", "axis_split"), Arm("rope", "1d")),
    Pair("theta per layer - shared", Arm("theta", "per_layer", "shuffled"), Arm("theta", "shared", "shuffled")),
    *(_number("frames", "prompts per key frame", other) for other in (1, 2, 6, 12)),
    *(_number("dynimgs", "DynImgs", other) for other in (1, 16)),
)


def theta_rates(arms: Arms) -> tuple[Pair, ...]:
    """Every learning rate of theta that was run, against the default one's 4D RoPE and against 1D RoPE.

    The default rate itself is 4D RoPE in the same regime, and compared there.
    """
    rates = [arm for arm in arms if arm.experiment == "theta_lr" and in_order(arm.arm)[1] != DEFAULT_THETA_RATE]
    return tuple(
        Pair(f"theta at {rate.arm} - {name}, {rate.regime}", rate, Arm("rope", rope, rate.regime))
        for rate in rates
        for name, rope in (("default", "4d"), ("1D RoPE", "1d"))
    )


@dataclass(frozen=True)
class Difference:
    """Of one measure, in points. Without an interval (`low`, `high`, `p` None) there were fewer than two seeds."""

    pair: Pair
    measure: str
    by_seed: Mapping[int, float]
    dropped: tuple[int, ...]  # seeds that only one side has
    mean: float
    room: float  # from the other side's mean up to 100 %, the most that could be gained
    low: float | None
    high: float | None
    p: float | None


def paired(pair: Pair, measure: str, arms: Arms) -> Difference | None:
    """The pair's difference over the seeds that both sides have; None where there is no such seed."""
    sides = [
        {seed: value for seed, run in arms.get(arm, {}).items() if (value := measured(run, measure)) is not None}
        for arm in (pair.better, pair.other)
    ]
    common = sorted(sides[0].keys() & sides[1].keys())
    if not common:
        return None
    by_seed = {seed: round(sides[0][seed] - sides[1][seed], DIGITS) for seed in common}
    dropped = tuple(sorted(sides[0].keys() ^ sides[1].keys()))
    room = 100 - fmean(sides[1][seed] for seed in common)
    gains = list(by_seed.values())
    return Difference(pair, measure, by_seed, dropped, fmean(gains), room, *t_interval(gains))


def t_interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """(low, high, p) of the mean of differences: 95 % Student t interval, two-sided test against 0."""
    if len(values) < 2:
        return None, None, None
    if len(set(values)) == 1:  # no spread: the interval is a point
        return values[0], values[0], float(values[0] == 0)
    result = stats.ttest_1samp(values, 0.0)
    interval = result.confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high), float(result.pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979): the k-th smallest of m times m - k + 1, never falling."""
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, values[place] * (len(values) - rank)))
        adjusted[place] = largest
    return adjusted


@dataclass(frozen=True)
class Comparisons:
    """All pairs. `differences[pair][measure]`; `adjusted` has Holm's p of the mean over all questions."""

    differences: Mapping[Pair, Mapping[str, Difference]]
    adjusted: Mapping[Pair, float]


def compare(arms: Arms) -> Comparisons:
    found = {
        pair: {measure: made for measure in (*MEASURES, CURVE) if (made := paired(pair, measure, arms)) is not None}
        for pair in (*PAIRS, *theta_rates(arms))
    }
    tested = {pair: made[ALL].p for pair, made in found.items() if ALL in made}
    known = {pair: p for pair, p in tested.items() if p is not None}
    return Comparisons(found, dict(zip(known, holm(list(known.values())), strict=True)))
