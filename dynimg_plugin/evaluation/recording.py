"""Writes the result record beside lmms-eval's results.

lmms-eval offers plug-ins no hook at the end of a run, so its EvaluationTracker is wrapped at the one method that knows
both the results and the file's name: what it did before, it still does.
"""

from __future__ import annotations

import functools
import logging
import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dynimg_plugin.evaluation.current import current
from dynimg_plugin.evaluation.record import RECORD, RunRecord, TaskRecord

logger = logging.getLogger(__name__)
PACKAGES = ("dynimg_plugin", "lmms-eval", "torch", "transformers", "peft", "av", "torchvision", "numpy")


def write_records() -> None:
    """From now on every results file of this process gets a record beside it. Twice is once."""
    from lmms_eval.loggers.evaluation_tracker import EvaluationTracker

    original = getattr(EvaluationTracker, "save_results_aggregated", None)
    if original is None:
        logger.warning("this lmms-eval has no EvaluationTracker.save_results_aggregated: no result record is written")
        return
    if getattr(original, "writes_dynimg_record", False):
        return

    @functools.wraps(original)
    def save_results_aggregated(self: Any, results: Any, samples: Any, datetime_str: str, **more: Any) -> Any:
        returned = original(self, results=results, samples=samples, datetime_str=datetime_str, **more)
        if self.output_path:
            folder = Path(self.output_path) / self.general_config_tracker.model_name_sanitized
            record = make_record(results, getattr(self, "date_id", datetime_str), samples is not None)
            logger.info("result record -> %s", record.save(folder / f"{record.date}{RECORD}"))
        return returned

    save_results_aggregated.writes_dynimg_record = True  # type: ignore[attr-defined]
    EvaluationTracker.save_results_aggregated = save_results_aggregated


def make_record(results: dict[str, Any], date: str, logged: bool) -> RunRecord:
    """From lmms-eval's results and what model and tasks have noted.

    Args:
        results: lmms-eval's. date: as in the names of its files. logged: the answers are written to files too.
    """
    evaluation = current()
    config = results["config"]
    kept = ("limit", "offset", "batch_size", "gen_kwargs", "random_seed", "numpy_seed", "torch_seed", "model_args")
    tasks = {
        name: TaskRecord(
            scores=_scores(results["results"].get(name, {})),
            questions=results["n-samples"][name]["effective"],
            samples=f"{date}_samples_{name}.jsonl" if logged else None,
            **evaluation.tasks.get(name, {}),
        )
        for name in results["configs"]
    }
    return RunRecord(
        date=date,
        model=str(config["model"]),
        tasks=tasks,
        arguments={name: config.get(name) for name in kept},
        versions={name: found for name in PACKAGES if (found := _version(name))},
        measured=evaluation.summary(),
        **evaluation.facts,
    )


def _scores(numbers: dict[str, Any]) -> dict[str, float | None]:
    """{"accuracy,none": 50.0, "accuracy_stderr,none": 1.0, "alias": ...} -> {"accuracy": 50.0}; nan becomes None."""
    scores: dict[str, float | None] = {}
    for key, value in numbers.items():
        metric, comma, _ = key.partition(",")
        if comma and "_stderr" not in metric and isinstance(value, int | float):
            scores[metric] = None if math.isnan(value) else float(value)
    return scores


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
