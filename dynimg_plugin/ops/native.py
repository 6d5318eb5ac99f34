"""Finds the compiled operator, refuses a stale one, and says what is there and why."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from dynimg_plugin.ops.build import PACKAGE, REPORT, digest, new_report

MEND = "dynimg build-ext"


@dataclass(frozen=True)
class Native:
    """What was built: the devices it serves, and in one sentence why no more.

    `stale`: it was built once and is refused. `mendable`: building it again would give more.
    """

    devices: frozenset[str] = field(default_factory=frozenset)
    why: str = ""
    stale: bool = False
    without_torch: bool = False

    @property
    def mendable(self) -> bool:
        return self.stale or self.without_torch


@cache
def load_native() -> Native:
    """Load `_C` once per process. What is wrong with it is returned, not raised: PyTorch code can stand in."""
    report = PACKAGE / REPORT
    if not report.exists():
        return Native(why="it was never built", without_torch=True)
    try:
        built = {**new_report(), **json.loads(report.read_text("utf-8"))}
    except (json.JSONDecodeError, TypeError) as error:
        return Native(why=f"{REPORT} cannot be read: {error}", stale=True)
    reasons = "; ".join(built["why"])
    if built["built"] == "none":
        return Native(why=reasons, without_torch=built["without_torch"])
    if built["torch"] != torch.__version__:
        return Native(why=f"it was built for torch {built['torch']}, this is {torch.__version__}", stale=True)
    if (PACKAGE / "csrc").is_dir() and built["sources"] != digest():
        return Native(why="it was built from other sources than those in csrc/", stale=True)
    binary = next(iter(sorted(Path(PACKAGE).glob("_C*.so")) + sorted(Path(PACKAGE).glob("_C*.pyd"))), None)
    if binary is None:
        return Native(why=f"{REPORT} tells of a binary that is not there", stale=True)
    try:
        torch.ops.load_library(str(binary))
    except (OSError, RuntimeError) as error:  # an undefined symbol, another glibc, operators that are there already
        return Native(why=f"{binary.name} does not load: {error}", stale=True)
    devices = ("cpu", "cuda") if built["built"] == "cuda" else ("cpu",)
    return Native(frozenset(devices), reasons)
