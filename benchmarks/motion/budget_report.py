"""The report's part on the token budget: accuracy against kept tokens, and what a budget saves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from . import plots, tables
from .comparisons import Pair, paired
from .questions import CHANCE
from .records import ALL, MEASURES, Arms, Record, score

ALLOWED_LOSS = 1.0  # points
SAVED = ("visual_tokens", "prefill_to_576", "prefill_to_2304", "kv_to_576", "kv_to_2304")
WAYS = {"full": "trained on all", "closed": "trained on all, ranks closed", "random": "random budgets"}
Line = tuple[str, str, str]  # RoPE, regime (how the model was trained), policy


def lines(arms: Arms) -> dict[Line, dict[float, Mapping[int, Record]]]:
    """The budget's runs as lines of the plot: for each RoPE, regime and policy the runs at every keep."""
    found: dict[Line, dict[float, Mapping[int, Record]]] = {}
    for arm, runs in arms.items():
        if arm.experiment == "budget":
            options = next(iter(runs.values())).options
            found.setdefault((arm.arm, arm.regime, options["keep_policy"]), {})[options["keep"]] = runs
    return {name: dict(sorted(found[name].items())) for name in sorted(found)}


def loss(line: Mapping[float, Mapping[int, Record]], keep: float, measure: str = ALL) -> float | None:
    """Points lost at `keep` against keep=1, mean over the seeds that both have; None without such seeds."""
    common = sorted(line.get(1.0, {}).keys() & line.get(keep, {}).keys())
    pairs = [[score(line[each][seed].accuracy, measure) for each in (1.0, keep)] for seed in common]
    lost = [whole - fewer for whole, fewer in pairs if whole is not None and fewer is not None]
    return fmean(lost) if lost else None


def smallest(line: Mapping[float, Mapping[int, Record]], measure: str = ALL) -> float | None:
    """The smallest keep that, like every larger one that was run, loses at most one point on average."""
    best = None
    for keep in sorted(line, reverse=True):
        lost = loss(line, keep, measure)
        if lost is None or lost > ALLOWED_LOSS:
            return best
        best = keep
    return best


def section(arms: Arms, timings: Mapping[str, Any] | None, pictures: Sequence[str]) -> str:
    found = lines(arms)
    parts = [f"{INTRODUCTION}\n\n{_accuracies(found)}", *pictures, _smallest(found), _ropes(arms)] if found else []
    return "\n\n".join([*parts, *([_savings(timings)] if timings else [])])


INTRODUCTION = """`keep` is the share of a DynImg's pooled tokens that the language model sees, each with its own
coordinates and its own position in the sequence. Regime `full`: trained on all tokens, evaluated with fewer; `closed`:
the same models where kept tokens close ranks; `random`: at every step of training a share was drawn, and as many tokens
at random; the policy chose in evaluation alone (with `least_keep` of `dynimg train` it chooses in training too)."""


def _accuracies(found: Mapping[Line, Mapping[float, Mapping[int, Record]]]) -> str:
    keeps = sorted({keep for line in found.values() for keep in line}, reverse=True)
    rows = [[*name, *(tables.spread(_scores(line.get(keep, {}))) for keep in keeps)] for name, line in found.items()]
    return tables.table(["RoPE", "regime", "policy", *(f"keep={keep:g}" for keep in keeps)], rows)


def _scores(runs: Mapping[int, Record], measure: str = ALL) -> list[float]:
    return [value for run in runs.values() if (value := score(run.accuracy, measure)) is not None]


def _smallest(found: Mapping[Line, Mapping[float, Mapping[int, Record]]]) -> str:
    head = ["RoPE", "regime", "policy", *(f"smallest keep, {measure}" for measure in MEASURES)]
    rows = [[*name, *(_budget(line, measure) for measure in MEASURES)] for name, line in found.items()]
    title = f"Smallest budget that loses at most {ALLOWED_LOSS:g} point on average over seeds, with the points lost:"
    return f"{title}\n\n{tables.table(head, rows)}"


def _budget(line: Mapping[float, Mapping[int, Record]], measure: str) -> str:
    keep = smallest(line, measure)
    if keep is None:
        return "no run at keep=1"
    return f"{keep:g} ({loss(line, keep, measure):+.1f})"


def _ropes(arms: Arms) -> str:
    """What 4D RoPE adds at each budget, over all questions."""
    pairs = [
        Pair(f"{arm.regime}, {arm.detail}", arm, replace(arm, arm="1d"))
        for arm in arms
        if arm.experiment == "budget" and arm.arm == "4d" and replace(arm, arm="1d") in arms
    ]
    rows = [[pair.name, *(tables.interval(paired(pair, measure, arms)) for measure in MEASURES)] for pair in pairs]
    head = ["trained, budget", *MEASURES]
    return f"4D - 1D RoPE in points, paired by seed, 95 % t intervals, uncorrected:\n\n{tables.table(head, rows)}"


def _savings(timings: Mapping[str, Any]) -> str:
    head = ["arm", "visual tokens", "prefill to 576", "prefill to 2,304", "KV cache to 576", "KV cache to 2,304"]
    rows = [
        [row["arm"], str(row["visual_tokens"]), *(f"{row[name]:.2f}" for name in SAVED[1:])] for row in timings["rows"]
    ]
    return (
        f"Prefill time and KV cache as ratios within one run, a random language model of 0.5B's shape, "
        f"{timings['layers']} layers, {timings['device']}, policy {timings['policy']}:\n\n{tables.table(head, rows)}"
    )


def figure(arms: Arms) -> Figure:
    """Accuracy against kept tokens; line: mean over seeds, band: lowest to highest; solid 4D, dashed 1D RoPE."""
    found = lines(arms)
    policies, regimes = ([*dict.fromkeys(name[place] for name in found)] for place in (2, 1))
    measures = (ALL, "position")
    tokens = sorted({_tokens(runs) for line in found.values() for runs in line.values()})
    shown, axes = plots.panels(len(measures) * len(regimes), most=len(measures), width=4.2, height=3.2)
    for axis, (regime, measure) in zip(axes, [(r, m) for r in regimes for m in measures], strict=True):
        for (rope, trained, policy), line in found.items():
            if trained == regime:
                points = {_tokens(runs): each for runs in line.values() if (each := _scores(runs, measure))}
                plots.line(axis, points, policies.index(policy), f"{policy}, {rope}", "-" if rope == "4d" else "--")
        axis.axhline(score(CHANCE, measure), color=plots.GREY, linestyle=":", label="chance")
        axis.set(title=f"{plots.TITLES[measure]}, {WAYS.get(regime, regime)}", ylim=(0, 102), xscale="log")
        axis.set_xticks(tokens, map(str, tokens))
        axis.minorticks_off()
    return plots.finished(shown, axes, "visual tokens kept of a video", "accuracy (%)")


def _tokens(runs: Mapping[int, Record]) -> int:
    return next(iter(runs.values())).visual_tokens


def drawn(arms: Arms) -> Iterator[tuple[str, Callable[[], Figure]]]:
    if any(arm.experiment == "budget" for arm in arms):
        yield "budget.png", lambda: figure(arms)
