"""Evaluate a model that is in memory, in the middle of its training, and leave no trace in it."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from dynimg_plugin.evaluation.manifest import tasks_path
from dynimg_plugin.evaluation.model import LlavaDynImg
from dynimg_plugin.processing import DynImgProcessor


def evaluate_model(
    model: Any, processor: DynImgProcessor, tasks: str, *, limit: int | None = None, batch_size: int = 1
) -> dict[str, float]:
    """Run lmms-eval tasks on a model as it is; its mode and all random states are afterwards as before.

    Args:
        tasks: names separated by commas.
        limit: questions per task at most.

    Returns:
        {"<task>/<metric>": score}, numbers only; empty on ranks other than the first.
    """
    names = tasks.split(",")
    manager = _tasks(own=True)
    if not set(names) <= set(manager.all_tasks):
        manager = _tasks(own=False)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise ValueError(f"lmms-eval knows no task {', '.join(unknown)}; `lmms-eval --tasks list` shows them")
    with _left_alone(model):
        served = LlavaDynImg.around(model, processor, batch_size=batch_size)
        found = simple_evaluate(
            served, tasks=names, task_manager=manager, limit=limit, log_samples=False, bootstrap_iters=0
        )
    return {} if found is None else dict(_scores(found["results"]))


@functools.cache
def _tasks(own: bool) -> TaskManager:
    """Those of this package, or all; lmms-eval reads some thousand files for its own."""
    return TaskManager("ERROR", include_path=tasks_path(), include_defaults=not own)


def _scores(results: dict[str, dict[str, Any]]) -> Iterator[tuple[str, float]]:
    for task, metrics in results.items():
        for name, value in metrics.items():
            if isinstance(value, int | float) and "stderr" not in name and value == value:
                yield f"{task}/{name.removesuffix(',none')}", float(value)


@contextmanager
def _left_alone(model: Any) -> Iterator[None]:
    """lmms-eval seeds every generator and the model runs in eval mode: both are put back."""
    training, states = model.training, (random.getstate(), np.random.get_state(), torch.random.get_rng_state())
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
        if on_cuda is not None:
            torch.cuda.set_rng_state_all(on_cuda)
