"""The study's plots, from the runs alone: PNG files whose bytes follow from the runs and the matplotlib in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .comparisons import Comparisons, Difference
from .questions import CHANCE
from .records import ALL, MEASURES, Arms, Record, score

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#8C6D31")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY = "#9a9a9a"
TITLES = {
    ALL: "all questions",
    "key": "key frames can answer",
    "between": "needs frames between",
    "position": "position",
}
VARIED = {
    "frames_20": "prompts per key frame",
    "frames": "prompts per key frame",
    "dynimgs": "DynImgs per video",
    "theta": "theta of the layers",
    "theta_lr": "learning rate of theta",
}
EFFECT_SIGNS = (
    Line2D([], [], linestyle="", marker="o", color=GREY, label="one seed"),
    Line2D([], [], marker="D", color="black", label="mean and 95 % interval"),
    Line2D([], [], marker="D", color=COLOURS[0], label="the same where it excludes 0, uncorrected"),
)


def save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def panels(number: int, most: int = 4, width: float = 3.4, height: float = 3.0) -> tuple[Figure, list[Axes]]:
    """So many panels, at most `most` in a row, with shared axes."""
    columns = min(number, most)
    rows = -(-number // columns)
    figure = Figure(figsize=(width * columns + 1.8, height * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for unused in axes[number:]:
        unused.remove()
    for axis in axes[:number]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    for lowest in axes[max(0, number - columns) : number]:  # also above a gap of the last row
        lowest.tick_params(labelbottom=True)
    return figure, list(axes[:number])


def effects(comparisons: Comparisons) -> Figure:
    """Every pair's difference: seeds as light dots, mean and 95 % interval on top, one column per measure."""
    shown = {pair: found for pair, found in comparisons.differences.items() if found}
    figure = Figure(figsize=(13, 0.36 * len(shown) + 1.6), layout="constrained")
    axes = figure.subplots(1, len(MEASURES), sharey=True, squeeze=False)[0]
    for axis, measure in zip(axes, MEASURES, strict=True):
        axis.axvline(0, color="black", linewidth=0.8)
        for place in _borders([pair.better.experiment for pair in shown]):
            axis.axhline(place, color=GREY, linewidth=0.8, linestyle=":")
        for place, by_measure in enumerate(shown.values()):
            if measure in by_measure:
                _effect(axis, place, by_measure[measure])
        axis.set_xlim(*_limits([found[measure] for found in shown.values() if measure in found]))
        axis.set(title=TITLES[measure], xlabel="difference in points")
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(shown)), [pair.name for pair in shown])
    axes[0].set_ylim(len(shown) - 0.4, -0.6)
    figure.legend(handles=EFFECT_SIGNS, loc="outside lower center", ncols=len(EFFECT_SIGNS), frameon=False)
    return figure


def _borders(names: Sequence[str]) -> list[float]:
    """Between which rows the experiment changes."""
    return [place + 0.5 for place, (name, then) in enumerate(pairwise(names)) if name != then]


def _effect(axis: Axes, place: int, difference: Difference) -> None:
    values = list(difference.by_seed.values())
    axis.plot(values, [place] * len(values), "o", color=GREY, alpha=0.6, markersize=4, markeredgewidth=0)
    sure = difference.low is not None and difference.high is not None and difference.low * difference.high > 0
    colour = COLOURS[0] if sure else "black"
    if difference.low is not None:
        axis.plot([difference.low, difference.high], [place, place], color=colour, linewidth=2)
    axis.plot(difference.mean, place, "D", color=colour, markersize=5)


def _limits(found: Sequence[Difference]) -> tuple[float, float]:
    """Around the seeds: with two or three of them an interval may be wider than the whole scale."""
    values = [value for difference in found for value in difference.by_seed.values()] or [0.0]
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.15 * (high - low) + 1
    return low - margin, high + margin


def curves(arms: Arms, experiment: str) -> Figure:
    """Accuracy over steps; line: mean over seeds, band: lowest to highest seed.

    One panel per regime, all questions; with a single regime one per measure.
    """
    arms = {arm: runs for arm, runs in arms.items() if arm.experiment == experiment}
    regimes, names = list(dict.fromkeys(arm.regime for arm in arms)), list(dict.fromkeys(arm.arm for arm in arms))
    shown = [(regime, ALL) for regime in regimes] if len(regimes) > 1 else [(regimes[0], each) for each in MEASURES]
    figure, axes = panels(len(shown))
    for axis, (regime, measure) in zip(axes, shown, strict=True):
        for arm, runs in arms.items():
            if arm.regime == regime:
                _curve(axis, list(runs.values()), measure, names.index(arm.arm), arm.arm)
        axis.set(title=regime if len(regimes) > 1 else TITLES[measure], ylim=(0, 102))
        axis.axhline(score(CHANCE, measure), color=GREY, linestyle=":", label="chance")
    return finished(figure, axes, "step", "accuracy, all questions (%)" if len(regimes) > 1 else "accuracy (%)")


def _curve(axis: Axes, runs: Sequence[Record], measure: str, place: int, label: str) -> None:
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for point in run.curve:
            if (value := score(point["accuracy"], measure)) is not None:
                by_step.setdefault(point["step"], []).append(value)
    line(axis, {step: by_step[step] for step in sorted(by_step)}, place, label)


def line(axis: Axes, found: Mapping[float, Sequence[float]], place: int, label: str, style: str = "-") -> None:
    colour = COLOURS[place % len(COLOURS)]
    axis.fill_between(
        list(found), *([pick(each) for each in found.values()] for pick in (min, max)), color=colour, alpha=0.15
    )
    marker = {"marker": MARKERS[place % len(MARKERS)], "markersize": 4}
    axis.plot(list(found), [fmean(each) for each in found.values()], style, color=colour, label=label, **marker)


def finished(figure: Figure, axes: Sequence[Axes], across: str, up: str) -> Figure:
    labelled = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(labelled.values(), labelled.keys(), loc="outside right center", frameon=False)
    figure.supxlabel(across, fontsize=10)
    figure.supylabel(up, fontsize=10)
    return figure


def values(arms: Arms, experiment: str) -> Figure:
    """Accuracy at the last step against the value that the experiment varies: seeds as dots, means as dashes."""
    arms = {arm: runs for arm, runs in arms.items() if arm.experiment == experiment}
    figure, axes = panels(len(MEASURES), width=max(2.6, 0.55 * len(arms)))
    for axis, measure in zip(axes, MEASURES, strict=True):
        for place, runs in enumerate(arms.values()):
            found = [value for run in runs.values() if (value := score(run.accuracy, measure)) is not None]
            axis.plot([place] * len(found), found, "o", color=COLOURS[0], alpha=0.5, markeredgewidth=0)
            if found:
                axis.plot(place, fmean(found), "_", color="black", markersize=18, markeredgewidth=2)
        axis.set(title=TITLES[measure], xlim=(-0.6, len(arms) - 0.4))
        axis.set_xticks(range(len(arms)), [arm.arm for arm in arms])
    figure.supxlabel(VARIED[experiment], fontsize=10)
    figure.supylabel("accuracy (%)", fontsize=10)
    return figure


def theta(arms: Arms) -> Figure:
    """Norms of theta_t, theta_h and theta_w at the end, one dot per seed, of every arm that has them."""
    shown = {
        str(arm): norms
        for arm, runs in arms.items()
        if (norms := [r.theta_norms for r in runs.values() if r.theta_norms])
    }
    figure = Figure(figsize=(8, 0.34 * len(shown) + 1.2), layout="constrained")
    axis = figure.subplots()
    for place, norms in enumerate(shown.values()):
        for which, name in enumerate("thw"):
            height = place + 0.22 * (which - 1)
            found = [each[name] for each in norms]
            axis.plot(
                found,
                [height] * len(found),
                MARKERS[which],
                color=COLOURS[which],
                alpha=0.7,
                markersize=5,
                label=f"theta_{name}" if place == 0 else None,
            )
    axis.set_yticks(range(len(shown)), list(shown))
    axis.set(ylim=(len(shown) - 0.5, -0.5), xlabel="norm (radians per slot or cell)")
    axis.set_xlim(left=0)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def attention(arms: Arms) -> Figure:
    """Where the answer's position looks, in percent, mean over seeds: arms by questions, one map per region."""
    shown = {
        arm: looked for arm, runs in arms.items() if (looked := [r.attention for r in runs.values() if r.attention])
    }
    asked = list(dict.fromkeys(name for looked in shown.values() for each in looked for name in each))
    regions = list(
        dict.fromkeys(region for looked in shown.values() for each in looked for one in each.values() for region in one)
    )
    figure = Figure(
        figsize=((0.62 * len(asked) + 0.3) * len(regions) + 2.6, 0.34 * len(shown) + 2.0), layout="constrained"
    )
    axes = figure.subplots(1, len(regions), sharey=True, squeeze=False)[0]
    for axis, region in zip(axes, regions, strict=True):
        _map(axis, np.array([[_share(looked, name, region) for name in asked] for looked in shown.values()]))
        axis.set_title("question and stills" if region == "text" else f"{region} frames")
        axis.set_xticks(range(len(asked)), asked, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    axes[0].set_yticks(range(len(shown)), [str(arm) for arm in shown], fontsize=8)
    return figure


def _share(looked: Sequence[Mapping[str, Mapping[str, float]]], name: str, region: str) -> float:
    found = [each[name][region] for each in looked if region in each.get(name, {})]
    return 100 * fmean(found) if found else float("nan")


def _map(axis: Axes, percents: np.ndarray) -> None:
    axis.imshow(percents, vmin=0, vmax=100, cmap="Blues", aspect="auto")
    for (row, column), value in np.ndenumerate(percents):
        if not np.isnan(value):
            axis.text(
                column,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if value > 60 else "black",
            )


def drawn(arms: Arms, comparisons: Comparisons) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """(file name, how to draw it) of every plot for which there are runs."""
    if any(comparisons.differences.values()):
        yield "effects.png", lambda: effects(comparisons)
    for experiment in dict.fromkeys(arm.experiment for arm in arms):
        runs = [run for arm, by_seed in arms.items() if arm.experiment == experiment for run in by_seed.values()]
        if experiment in VARIED:
            yield f"values_{experiment}.png", lambda name=experiment: values(arms, name)
        if any(run.curve for run in runs):
            yield f"curves_{experiment}.png", lambda name=experiment: curves(arms, name)
    every = [run for by_seed in arms.values() for run in by_seed.values()]
    if any(run.theta_norms for run in every):
        yield "theta.png", lambda: theta(arms)
    if any(run.attention for run in every):
        yield "attention.png", lambda: attention(arms)
