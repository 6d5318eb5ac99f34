"""How long the vision tower of a loaded model works, without touching what it computes."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch

from dynimg_plugin.evaluation.current import Measurements

TOWERS = ("vision_tower", "visual", "vision_model")


def time_vision(model: Any, measured: Measurements) -> None:
    """Add the time of every call of the vision tower to `measured` as "vision"; a model without one stays unmeasured.

    CUDA works behind the program's back, so it is waited for before and after: twice per call of generate().
    """
    tower = next((module for name, module in model.named_modules() if name.rpartition(".")[2] in TOWERS), None)
    if tower is None:
        return
    began: list[float] = []

    def before(*_: Any) -> None:
        wait(model)
        began.append(perf_counter())

    def after(*_: Any) -> None:
        wait(model)
        measured.add("vision", perf_counter() - began.pop())

    tower.register_forward_pre_hook(before)
    tower.register_forward_hook(after)


def wait(model: Any) -> None:
    """Until the model's device has done what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
