"""Runs and comparisons as Markdown tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from .claims import Finding
from .comparisons import PAIRS, Comparisons, Difference
from .questions import CHANCE, QUESTIONS
from .records import ALL, CURVE, MEASURES, Arm, Arms, Record, score

NONE = "-"
LATE = 400  # steps, at the end of training


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and, from two values on, the standard deviation over seeds."""
    if not values:
        return NONE
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def seeds(numbers: Iterable[int]) -> str:
    return " ".join(map(str, sorted(numbers))) or NONE


def p_value(p: float | None) -> str:
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def claims(found: Sequence[Finding], comparisons: Comparisons) -> str:
    rows = []
    for finding in found:
        for pair, outcome in finding.by_pair.items():
            led = _led(comparisons.differences[pair].get(ALL), comparisons.adjusted.get(pair))
            rows.append(["", "", pair.name, f"{finding.claim.gains[pair]:+.1f}", led, outcome])
        rows[-len(finding.by_pair)][:2] = [finding.claim.text, f"**{finding.verdict}**"]
    head = ["claim", "in miniature", "pair", "paper's gain", "gain here: points, all questions", "the pair alone"]
    cautions = [f"- {one.claim.text}: {one.claim.caution}." for one in found if one.claim.caution]
    given = ["What the clips give to one side before any run:", "\n".join(cautions)] if cautions else []
    return "\n\n".join([table(head, rows), *given])


def _led(difference: Difference | None, adjusted: float | None) -> str:
    if difference is None:
        return "no seeds on both sides"
    led = f"{interval(difference)}, {_count(difference)}, Holm's p {p_value(adjusted)}"
    return f"{led}, {difference.room:.1f} below 100 %"


def _count(difference: Difference) -> str:
    number = len(difference.by_seed)
    return "1 seed" if number == 1 else f"{number} seeds"


def interval(difference: Difference | None) -> str:
    if difference is None:
        return NONE
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.1f}"
    return f"{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"


def differences(comparisons: Comparisons) -> str:
    head = ["pair", "seeds", "all questions, by seed", "all: mean [95 %]", "Holm's p"]
    rows, beside = [], (*MEASURES[1:], CURVE)
    for pair, by_measure in comparisons.differences.items():
        whole = by_measure.get(ALL)
        if whole is None:
            continue
        each = " ".join(f"{value:+.1f}" for value in whole.by_seed.values())
        figures = [interval(whole), p_value(comparisons.adjusted.get(pair))]
        rows.append([pair.name, seeds(whole.by_seed), each, *figures, *(interval(by_measure.get(m)) for m in beside)])
    if not rows:
        return "No pair has runs on both sides."
    return table([*head, *(f"{measure}, uncorrected" for measure in beside)], rows)


def dropped(comparisons: Comparisons) -> list[str]:
    return [
        f"{pair.name}: seeds {seeds(by_measure[ALL].dropped)} were run on one side only and are left out of the pair"
        for pair, by_measure in comparisons.differences.items()
        if ALL in by_measure and by_measure[ALL].dropped
    ]


def missing(arms: Arms) -> list[str]:
    wanted = dict.fromkeys(arm for pair in PAIRS for arm in (pair.better, pair.other))
    lines = [f"`{arm}`: no run" for arm in wanted if arm not in arms]
    budget = any(arm.experiment == "budget" for arm in arms)
    return lines if budget else [*lines, "`budget`: no run of this experiment"]


def unpaired(arms: Arms, comparisons: Comparisons) -> list[str]:
    """Pairs of which both sides were run, but never with the same seed."""
    return [
        f"{pair.name}: no seed was run on both sides"
        for pair, by_measure in comparisons.differences.items()
        if ALL not in by_measure and pair.better in arms and pair.other in arms
    ]


def means(arms: Arms) -> str:
    head = ["arm", "regime", "seeds", "visual tokens", *MEASURES, *QUESTIONS]

    def row(arm: Arm, runs: Mapping[int, Record]) -> list[str]:
        scores = [spread(_known(score(run.accuracy, measure) for run in runs.values())) for measure in MEASURES]
        single = [spread(_known(run.accuracy.get(name) for run in runs.values())) for name in QUESTIONS]
        return [*_names(arm), seeds(runs), _tokens(runs), *scores, *single]

    chance = [*(_one(score(CHANCE, measure)) for measure in MEASURES), *map(_one, CHANCE.values())]
    return table(head, [*(row(arm, runs) for arm, runs in arms.items()), ["*chance*", *[NONE] * 3, *chance]])


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _names(arm: Arm) -> list[str]:
    return [f"{arm.arm}, {arm.detail}" if arm.detail else arm.arm, arm.regime]


def _tokens(runs: Mapping[int, Record]) -> str:
    return str(next(iter(runs.values())).visual_tokens)


def costs(arms: Arms) -> str:
    head = ["experiment", "arm", "regime", "options", "steps", "learning rate", "rates tried for the tower", "runs"]
    return table(
        [*head, "CPU s a run", "wall s a run", "device"],
        (
            [arm.experiment, *_names(arm), *_settings(runs), str(len(runs)), *_seconds(runs)]
            for arm, runs in arms.items()
        ),
    )


def _settings(runs: Mapping[int, Record]) -> list[str]:
    first = next(iter(runs.values()))
    options = ", ".join(f"{name}={value}" for name, value in sorted(first.options.items())) or NONE
    return [
        options,
        str(first.steps),
        f"{first.learning_rate:g}",
        " ".join(_distinct(runs, lambda run: str(run.tuned))),
    ]


def _seconds(runs: Mapping[int, Record]) -> list[str]:
    each = runs.values()
    times = [spread([run.cpu_seconds for run in each], 0), spread([run.wall_seconds for run in each], 0)]
    return [*times, " ".join(_distinct(runs, lambda run: run.device))]


def _distinct(runs: Mapping[int, Record], of: Callable[[Record], str]) -> list[str]:
    return sorted({of(run) for run in runs.values()})


def soon(arms: Arms, question: str, percent: float) -> str:
    """Per seed, after how many steps a question was first at `percent` on the learning curve; and is that flat?"""

    def steps(run: Record) -> str:
        reached = (point["step"] for point in run.curve if point["accuracy"].get(question, 0) >= percent)
        return str(next(reached, f"not in {run.steps}"))

    head = ["experiment", "arm", "regime", "seeds", "steps", f"gained in the last {LATE} steps, all questions"]
    rows = [
        [arm.experiment, *_names(arm), seeds(runs), *(", ".join(map(of, _by_seed(runs))) for of in (steps, _late))]
        for arm, runs in arms.items()
        if all(run.curve for run in runs.values())
    ]
    return table(head, rows) if rows else ""


def _by_seed(runs: Mapping[int, Record]) -> list[Record]:
    return [runs[seed] for seed in sorted(runs)]


def _late(run: Record) -> str:
    """What the learning curve rose by at its end, near 0 where it is flat."""
    at = {point["step"]: score(point["accuracy"], ALL) for point in run.curve}
    before, end = at.get(run.steps - LATE), at.get(run.steps)
    return NONE if before is None or end is None else f"{end - before:+.1f}"


def theta(arms: Arms) -> str:
    rows = []
    for arm, runs in arms.items():
        norms = [run.theta_norms for run in runs.values() if run.theta_norms is not None]
        if norms:
            axes = [spread([each[axis] for each in norms], 3) for axis in "thw"]
            rows.append([arm.experiment, *_names(arm), str(len(norms)), *axes])
    return table(["experiment", "arm", "regime", "runs", "theta_t", "theta_h", "theta_w"], rows) if rows else ""


def every_run(records: Sequence[Record]) -> str:
    rows = (
        [
            record.experiment,
            *_names(record.key),
            str(record.seed),
            *(_one(score(record.accuracy, measure)) for measure in MEASURES),
            *(_one(record.accuracy.get(name)) for name in QUESTIONS),
            f"{record.cpu_seconds:.0f}",
            f"{record.wall_seconds:.0f}",
        ]
        for record in records
    )
    return table(["experiment", "arm", "regime", "seed", *MEASURES, *QUESTIONS, "CPU s", "wall s"], rows)


def _one(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"
