"""report.md and its plots, from a folder of runs alone: the same runs give the same bytes of report.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from . import budget_report, claims, plots, tables
from .comparisons import PAIRS, Comparisons, compare
from .questions import GROUPS
from .records import ALL, Arms, RecordError, by_arm, load

LEARNED = 95.0  # percent
SOON = """Steps until the direction of the fast streak, the question that most runs learn last, was first at
{percent:g} % on the learning curve, in the order of seeds, and by how many points the curve of all questions rose at
its end: near 0 is flat, though the learning rate falls to zero there. Nothing was planned about it."""
ATTENTION = """Where a question's token looks: shares of its attention that go to cells of key frames, of prompts and to
the rest, which add up to 100 %; means over both layers, all heads, 250 clips of evaluation and all seeds."""
METHOD = """Differences are paired by seed. Brackets hold the 95 % Student t interval of the mean over seeds. Holm's p
corrects the two-sided t test of the mean over all questions for all {planned} planned pairs, of which {number} could
be compared; a pair counts as a difference below {level}. Pairs without Holm's p have one seed or were thought of when
runs were at hand. The four pairs on clips of 13 frames were planned when those on clips of 20 had been run. Beside it
stand, uncorrected, the groups of questions and the mean of all questions along the learning curve, which tells who
learns sooner; no claim rests on them. No sign was assumed beforehand. Learning rates are those that were best for 1D
RoPE with seed 0, whose run is the better one of that search, a small advantage of 1D over 4D RoPE in that seed."""
ONE_KEY_FRAME = """With one key frame the questions of `key` need prompts too: one frame does not tell the disc that
drifts from the one that stays."""
VERDICTS = """One pair is held when its difference is above 0 with Holm's p below {level}; not held when it is below 0
with such a p, or when its interval reaches down to 0 but not up to {margin:g} point (the paper's gain, where that is
smaller) and the other side is at least as far below 100 % (asked since runs were at hand); else, and with fewer than
{fewest} seeds, undecided. A claim is held when all its pairs are, not held when one is not. The paper's gains are its
own, on MSVD-QA with a 7B model. A null result is a result; none of this says what a 7B model does on real videos."""


def write(runs: Path, output: Path, timings: Path | None = None) -> Path:
    """Writes report.md and its plots to `output`, from runs/*.json; `timings`: a file of benchmarks/token_budget.py.

    Raises:
        RecordError: a file is no run, or runs do not fit together.
    """
    arms = by_arm(load(runs))
    differences = compared(arms)
    drawn = figures(arms, differences)
    text = render(arms, differences, list(drawn), read_timings(timings))
    output.mkdir(parents=True, exist_ok=True)
    for name, draw in drawn.items():
        plots.save(draw(), output / name)
    path = output / "report.md"
    path.write_text(text, "utf-8")
    return path


def compared(arms: Arms) -> Comparisons:
    return compare(without_budget(arms))


def figures(arms: Arms, differences: Comparisons) -> dict[str, Callable[[], Figure]]:
    """By file name, how to draw every plot for which there are runs."""
    return {**dict(plots.drawn(without_budget(arms), differences)), **dict(budget_report.drawn(arms))}


def without_budget(arms: Arms) -> Arms:
    """Without the token budget's runs: many are of one model, and they have a section of their own."""
    return {arm: by_seed for arm, by_seed in arms.items() if arm.experiment != "budget"}


def read_timings(path: Path | None) -> dict[str, Any] | None:
    """What `benchmarks/token_budget.py --json` wrote.

    Raises:
        RecordError: the file cannot be read or holds something else.
    """
    if path is None:
        return None
    try:
        timings = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RecordError(
            f"{path} cannot be read ({error.strerror}); `benchmarks/token_budget.py --json` writes it"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path} is not JSON ({error})") from error
    whole = isinstance(timings, dict) and {"rows", "layers", "device", "policy"} <= set(timings)
    rows = timings["rows"] if whole and isinstance(timings["rows"], list) else [None]
    if not all(isinstance(row, dict) and {"arm", *budget_report.SAVED} <= set(row) for row in rows):
        raise RecordError(f"{path} is not what `benchmarks/token_budget.py --json` writes")
    return timings


def render(
    arms: Arms,
    differences: Comparisons,
    drawn: list[str],
    timings: dict[str, Any] | None = None,
) -> str:
    """report.md as text; `drawn` names the plots that lie beside it."""
    sections = [("# The miniature study of DynImg", head(arms)), *_sections(arms, differences, drawn, timings)]
    return "\n\n".join(f"{title}\n\n{text}" for title, text in sections if text) + "\n"


def _sections(
    arms: Arms,
    differences: Comparisons,
    drawn: list[str],
    timings: dict[str, Any] | None,
) -> Iterator[tuple[str, str]]:
    method = METHOD.format(planned=len(PAIRS), number=len(differences.adjusted), level=claims.LEVEL)
    verdicts = VERDICTS.format(level=claims.LEVEL, margin=claims.MARGIN, fewest=claims.FEWEST_SEEDS)
    yield "## The paper's claims", f"{tables.claims(claims.findings(differences), differences)}\n\n{verdicts}"
    yield "## Missing", bullets([*tables.missing(arms), *tables.unpaired(arms, differences)])
    body = [method, bullets(tables.dropped(differences)), tables.differences(differences), *pictures(drawn, "effects")]
    yield "## Differences", "\n\n".join(filter(None, body))
    others = without_budget(arms)
    for experiment in dict.fromkeys(arm.experiment for arm in others):
        own = {arm: runs for arm, runs in arms.items() if arm.experiment == experiment}
        shown = pictures(drawn, f"values_{experiment}.", f"curves_{experiment}.")
        note = [ONE_KEY_FRAME] if experiment in ("frames", "dynimgs") else []
        yield f"## Arms: {experiment}", "\n\n".join([*note, tables.means(own), *shown])
    if steps := tables.soon(others, "direction_fast", LEARNED):
        yield (
            "## Who learns the fast direction, how soon, and whether it goes on",
            f"{SOON.format(percent=LEARNED)}\n\n{steps}",
        )
    yield "## Token budget", budget_report.section(arms, timings, pictures(drawn, "budget"))
    yield "## Theta", "\n\n".join(filter(None, [tables.theta(others), *pictures(drawn, "theta.")]))
    if shown := pictures(drawn, "attention"):
        yield "## Attention from the answer", "\n\n".join([ATTENTION, *shown])
    yield "## What was tuned, and what it cost", tables.costs(arms)
    yield "## Every run", tables.every_run([run for runs in arms.values() for run in runs.values()])


def head(arms: Arms) -> str:
    runs = [run for by_seed in arms.values() for run in by_seed.values()]
    # Work that has two names counts once; the budget's runs have each a part of their model's time.
    times = {(run.cpu_seconds, run.wall_seconds, run.key.detail and str(run.key)) for run in runs}
    cpu, wall = (sum(time[part] for time in sorted(times)) / 60 for part in (0, 1))
    models = {json.dumps([run.curve, run.theta_norms]) for run in runs}
    devices, versions = (", ".join(sorted({getattr(run, name) for run in runs})) for name in ("device", "torch"))
    groups = "; ".join(f"{name}: {', '.join(questions)}" for name, questions in GROUPS.items())
    return (
        f"{len(runs)} runs of {len(arms)} arms, from {len(models)} different models, "
        f"seeds {tables.seeds({run.seed for run in runs})}, on {devices}, "
        f"torch {versions}: {cpu:.0f} CPU minutes, {wall:.0f} minutes of runs, towers and tuning not counted. "
        "Accuracies are percent on the evaluation split after the last step, learning curves on the tuning split; "
        f"mean ± standard deviation over seeds. Groups of questions: {groups}; {ALL}: every question."
    )


def bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def pictures(drawn: list[str], *starts: str) -> list[str]:
    return [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in drawn if name.startswith(starts)]
