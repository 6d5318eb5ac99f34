"""Which arms are compared, and how: paired by seed, t intervals, Holm's correction over all planned pairs.

A planned pair, and the measure that the correction and the claims rest on (the mean over all questions), was written
down before its first run; the four on clips of 13 frames when 1, 2 and 4 prompts had been run on clips of 20. The
correction counts all of them, run or not, so that it does not change with what is there.
Pairs thought of afterwards, the groups of questions and the mean along the learning curve are reported uncorrected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy import stats

from .plan import DYNIMGS, OTHER_THETA_RATES, PROMPTS, PROMPTS_20, REGIMES, THETA_RATE
from .records import ALL, CURVE, MEASURES, Arm, Arms, measured

CONFIDENCE = 0.95
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


def _theta_rate(rate: float, name: str, rope: str) -> Pair:
    return Pair(
        f"theta at {rate:g} - {name}, shuffled",
        Arm("theta_lr", f"{rate:g}", "shuffled"),
        Arm("rope", rope, "shuffled"),
    )


PAIRS = (
    _fusion("after", "none"),
    *(_fusion("canvas", other) for other in ("none", "after", "canvas_apart", "tokens", "frames_16", "image_grid")),
    *(_rope("rope", regime) for regime in REGIMES),
    _rope("lora", "lora"),
    Pair("axis split - 1D RoPE", Arm("fusion", "axis_split"), Arm("rope", "1d")),
    Pair("theta per layer - shared", Arm("theta", "per_layer", "shuffled"), Arm("theta", "shared", "shuffled")),
    *(_number("frames_20", "prompts, clips of 20 frames", other) for other in PROMPTS_20 if other != 4),
    *(_number("frames", "prompts, clips of 13 frames", other) for other in PROMPTS if other != 4),
    *(_number("dynimgs", "DynImgs", other) for other in DYNIMGS if other != 4),
    *(
        _theta_rate(rate, name, rope)
        for rate in OTHER_THETA_RATES
        for name, rope in ((f"{THETA_RATE:g}", "4d"), ("1D RoPE", "1d"))
    ),
)
AFTERWARDS = tuple(  # 1D RoPE is told no time, so 4D - 1D does not say what real time adds to 4D RoPE
    Pair(f"real time - slots, 4D RoPE, {name}", Arm("rope", "4d", timed), Arm("rope", "4d", slots))
    for name, timed, slots in (("order", "order_time", "order"), ("irregular", "irregular_time", "irregular_slot"))
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


def holm(values: Sequence[float], tests: int) -> list[float]:
    """p values adjusted (Holm 1979): the k-th smallest times `tests` - k + 1, never falling.

    Args:
        tests: how many were planned; those without a value are taken for the largest.
    """
    adjusted = [0.0] * len(values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, values[place] * (tests - rank)))
        adjusted[place] = largest
    return adjusted


@dataclass(frozen=True)
class Comparisons:
    """All pairs. `differences[pair][measure]`; `adjusted`: Holm's p of planned ones, of the mean over all questions."""

    differences: Mapping[Pair, Mapping[str, Difference]]
    adjusted: Mapping[Pair, float]


def compare(arms: Arms) -> Comparisons:
    found = {
        pair: {measure: made for measure in (*MEASURES, CURVE) if (made := paired(pair, measure, arms)) is not None}
        for pair in (*PAIRS, *AFTERWARDS)
    }
    tested = {pair: found[pair][ALL].p for pair in PAIRS if ALL in found[pair]}
    known = {pair: p for pair, p in tested.items() if p is not None}
    return Comparisons(found, dict(zip(known, holm(list(known.values()), len(PAIRS)), strict=True)))
