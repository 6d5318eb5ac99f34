"""Four statistical checks of the study, in about 20 CPU minutes, at one learning rate; the third does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from .questions import GROUPS
from .runs import Run, Study

SLOW_THETA = {  # learning rates of theta at which it should gain nothing
    1e-4: "theta's learning rate x 0.01",
    1e-5: "theta's learning rate x 0.001, with which it moves as far as with LoRA's 2e-5 in 1,200 steps",
}


@dataclass(frozen=True)
class Outcome:
    """A difference in points, per seed, and whether its mean is on the right side of the limit."""

    what: str
    differences: list[float]
    above: float | None = None
    below: float | None = None

    @property
    def holds(self) -> bool:
        mean = fmean(self.differences)
        return (self.above is None or mean > self.above) and (self.below is None or mean < self.below)

    def __str__(self) -> str:
        limit = f"> {self.above:g}" if self.above is not None else f"< {self.below:g}"
        seeds = ", ".join(f"{difference:+.1f}" for difference in self.differences)
        verdict = "held" if self.holds else "NOT HELD"
        return f"{verdict:8} {self.what}: {fmean(self.differences):+.1f} points, wanted {limit} ({seeds})"


def runs_of(seed: int) -> dict[str, Run]:
    return {
        "4d": Run("rope", "4d", "canvas", "shuffled", seed, True),
        "1d": Run("rope", "1d", "canvas", "shuffled", seed),
        "canvas": Run("fusion", "canvas", "canvas", "fixed", seed),
        "none": Run("fusion", "none", "none", "fixed", seed),
        **{
            words: Run("theta_lr", f"{rate:g}", "canvas", "shuffled", seed, True, rate)
            for rate, words in SLOW_THETA.items()
        },
    }


def check(study: Study, seeds: int) -> Iterator[Outcome]:
    """Make the runs that are missing, then compare them."""
    runs = [runs_of(seed) for seed in range(seeds)]
    study.run([run for by_arm in runs for run in by_arm.values()])
    found = [{arm: study.read(run)["accuracy"] for arm, run in by_arm.items()} for by_arm in runs]

    def fast(arm: str) -> list[float]:
        return [arms[arm]["direction_fast"] - arms["1d"]["direction_fast"] for arms in found]

    def between(arm: str) -> list[float]:
        return [fmean(arms[arm][name] for name in GROUPS["between"]) for arms in found]

    gains = [canvas - none for canvas, none in zip(between("canvas"), between("none"), strict=True)]
    yield Outcome("shuffled tokens, fast direction, 4D - 1D RoPE", fast("4d"), above=20)
    yield Outcome("questions that need the frames between, canvas - none", gains, above=15)
    for words in SLOW_THETA.values():
        yield Outcome(f"the same as the first with {words}", fast(words), below=5)


def as_json(findings: list[Outcome]) -> list[dict[str, Any]]:
    return [
        {"what": f.what, "differences": f.differences, "above": f.above, "below": f.below, "holds": f.holds}
        for f in findings
    ]
