"""The runs of the study as they lie on disk: one JSON per run, checked when it is read.

{"version": 1, "experiment": "fusion", "arm": "canvas", "regime": "fixed", "seed": 0, "options": {}, ...}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from .questions import GROUPS, QUESTIONS

VERSION = 1
EXPERIMENTS = ("fusion", "rope", "lora", "frames_20", "frames", "dynimgs", "theta", "theta_lr", "budget")
ALL = "all"
MEASURES = (ALL, *GROUPS)  # what is averaged: all questions, and each group of them
CURVE = "along the curve"  # all questions, mean over the learning curve: who learns sooner has more
SAME_IN_AN_ARM = ("steps", "learning_rate", "visual_tokens", "options")


class RecordError(ValueError):
    """A file among the runs is not a run of this study, or runs do not fit together."""


@dataclass(frozen=True, order=True)
class Arm:
    """What is compared. `detail` sets apart the arms of the token budget: "keep 0.4, motion"."""

    experiment: str
    arm: str
    regime: str = "fixed"
    detail: str = ""

    def __str__(self) -> str:
        return ", ".join(part for part in (f"{self.experiment} {self.arm}", self.regime, self.detail) if part)


@dataclass(frozen=True)
class Record:
    """One run. Accuracies in percent on the evaluation split at the last step; times in seconds."""

    version: int
    experiment: str
    arm: str
    regime: str
    seed: int
    options: dict[str, Any]
    visual_tokens: int
    steps: int
    learning_rate: float
    tuned: int
    accuracy: dict[str, float]
    curve: list[dict[str, Any]]
    theta_norms: dict[str, float] | None
    attention: dict[str, dict[str, float]] | None
    wall_seconds: float
    cpu_seconds: float
    device: str
    torch: str

    @property
    def key(self) -> Arm:
        budget = self.experiment == "budget"
        detail = f"keep {self.options['keep']:g}, {self.options['keep_policy']}" if budget else ""
        return Arm(self.experiment, self.arm, self.regime, detail)


def score(accuracy: dict[str, float], measure: str) -> float | None:
    """Mean accuracy over all questions or over one group of them; None where one of the group was not asked."""
    names = QUESTIONS if measure == ALL else GROUPS[measure]
    return fmean(accuracy[name] for name in names) if set(names) <= set(accuracy) else None


def measured(record: Record, measure: str) -> float | None:
    """One of MEASURES at the end of training, or CURVE, its mean over the learning curve."""
    if measure != CURVE:
        return score(record.accuracy, measure)
    points = [score(point["accuracy"], ALL) for point in record.curve]
    known = [point for point in points if point is not None]
    return fmean(known) if known else None


def load(folder: Path) -> list[Record]:
    """All runs of a folder, in the order of experiments, regimes, arms and seeds.

    Raises:
        RecordError: no runs there, a file that is none, one run twice, or runs of one arm with other settings.
    """
    found = [(path, read(path)) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise RecordError(f"no runs (*.json) in {folder}; make some with the `run` command")
    _check_together(found)
    return sorted((record for _, record in found), key=_order)


def read(path: Path) -> Record:
    """One run.

    Raises:
        RecordError: the file is no run of this version; says which field is wrong.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path} is not JSON ({error}); delete it and run again") from error
    if not isinstance(data, dict) or data.get("version") != VERSION:
        raise RecordError(f"{path} is not a run of version {VERSION} of the study; move it out of the folder")
    names = {field.name for field in fields(Record)}
    if set(data) != names:
        wrong = f"lacks {sorted(names - set(data))}, has {sorted(set(data) - names)} too much"
        raise RecordError(f"{path} is not a run of the study: {wrong}")
    for name, allowed in _rules().items():
        if not allowed(data[name]):
            raise RecordError(f"{path}: {name} is {data[name]!r}, which no run can have")
    record = Record(**data)
    if record.experiment == "budget" and not {"keep", "keep_policy"} <= set(record.options):
        raise RecordError(f"{path}: a run of the token budget needs options keep and keep_policy, got {record.options}")
    return record


def _rules() -> dict[str, Any]:
    def number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0

    def whole(value: Any) -> bool:
        return number(value) and isinstance(value, int)

    def text(value: Any) -> bool:
        return isinstance(value, str) and bool(value)

    def percents(value: Any) -> bool:
        known = isinstance(value, dict) and bool(value) and set(value) <= set(QUESTIONS)
        return known and all(number(each) and each <= 100 for each in value.values())

    def numbers(value: Any) -> bool:
        return isinstance(value, dict) and all(map(number, value.values()))

    def point(value: Any) -> bool:
        parts = isinstance(value, dict) and {"step", "loss", "accuracy"} <= set(value)
        return parts and whole(value["step"]) and number(value["loss"]) and percents(value["accuracy"])

    return {
        "experiment": lambda value: value in EXPERIMENTS,
        **dict.fromkeys(("arm", "regime", "device", "torch"), text),
        **dict.fromkeys(("seed", "visual_tokens", "steps", "tuned"), whole),
        **dict.fromkeys(("learning_rate", "wall_seconds", "cpu_seconds"), number),
        "options": lambda value: isinstance(value, dict),
        "accuracy": percents,
        "curve": lambda value: isinstance(value, list) and all(map(point, value)),
        "theta_norms": lambda value: value is None or (numbers(value) and set(value) == set("thw")),
        "attention": lambda value: value is None or (isinstance(value, dict) and all(map(numbers, value.values()))),
    }


def _check_together(found: Sequence[tuple[Path, Record]]) -> None:
    first: dict[Arm, tuple[Path, Record]] = {}
    seen: dict[tuple[Arm, int], Path] = {}
    for path, record in found:
        twin = seen.setdefault((record.key, record.seed), path)
        if twin != path:
            raise RecordError(f"{twin} and {path} are the same run ({record.key}, seed {record.seed}); keep one")
        like, other = first.setdefault(record.key, (path, record))
        for name in SAME_IN_AN_ARM:
            if getattr(record, name) != getattr(other, name):
                both = f"{getattr(other, name)!r} and {getattr(record, name)!r}"
                raise RecordError(f"{like} and {path} are of one arm ({record.key}), but their {name} differ: {both}")


def _order(record: Record) -> tuple[Any, ...]:
    key = record.key
    return EXPERIMENTS.index(key.experiment), key.regime, in_order(key.arm), key.detail, record.seed


def in_order(arm: str) -> tuple[bool, float, str]:
    """Sorts arms that are numbers by value, before the others."""
    try:
        return False, float(arm), ""
    except ValueError:
        return True, 0.0, arm


Arms = Mapping[Arm, Mapping[int, Record]]  # the runs of every arm by seed


def by_arm(records: Sequence[Record]) -> Arms:
    """The runs of every arm by seed."""
    arms: dict[Arm, dict[int, Record]] = {}
    for record in records:
        arms.setdefault(record.key, {})[record.seed] = record
    return arms
