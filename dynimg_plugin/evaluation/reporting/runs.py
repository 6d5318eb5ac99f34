"""From folders of results to runs that can stand side by side: one per folder, setup and judge."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dynimg_plugin.evaluation.judging.saved import find_judgements
from dynimg_plugin.evaluation.judging.scores import ASPECT_METRICS, QA_METRICS, Interval, bootstrap
from dynimg_plugin.evaluation.record import RECORD, RunRecord, TaskRecord, find_records
from dynimg_plugin.evaluation.samples import KEY, Sample, marks_by_metric, read_samples

JUDGED = {*QA_METRICS, *ASPECT_METRICS}


@dataclass(frozen=True)
class TaskResult:
    """One task of one run under one judge.

    Attributes:
        scores, intervals: metric -> value and its 95 % interval; judged metrics are this judge's or missing.
        judge: Judge.identity, None where this judge was not asked.
        judge_failed: share of its requests without a verdict.
        record: everything else about the task.
    """

    scores: dict[str, float | None]
    intervals: dict[str, Interval]
    judge: dict[str, Any] | None
    judge_failed: float | None
    record: TaskRecord


@dataclass(frozen=True)
class Run:
    """A column of the report: what was run (the newest record's fields) and its tasks."""

    folder: str
    record: RunRecord
    tasks: dict[str, TaskResult] = field(default_factory=dict)

    @property
    def judge(self) -> dict[str, Any] | None:
        """The judge of this column."""
        return next((task.judge for task in self.tasks.values() if task.judge is not None), None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        setup = {name: value for name, value in asdict(self.record).items() if name != "tasks"}
        return {"folder": self.folder, "run": setup, "tasks": {name: asdict(task) for name, task in self.tasks.items()}}


def collect(folders: Iterable[Path]) -> list[Run]:
    """The runs under each folder. Tasks evaluated apart with one setup are one run; the newest result of a task counts.

    Raises:
        FileNotFoundError: a folder that is not there or holds no result record.
    """
    runs: list[Run] = []
    for folder in folders:
        records = find_records(folder) if folder.is_dir() else []
        if not records:
            raise FileNotFoundError(f"{folder} holds no *{RECORD}; give the --output_path of an evaluation")
        setups: dict[str, Run] = {}
        results: dict[str, dict[str, dict[str | None, TaskResult]]] = defaultdict(dict)
        for path in records:
            record = RunRecord.load(path)
            key = json.dumps([record.model, record.checkpoint, record.adapter, record.dynimg], sort_keys=True)
            setups[key] = Run(str(folder), record)
            results[key] |= {name: _judged(path.parent, name, task) for name, task in record.tasks.items()}
        runs += [run for key in setups for run in _by_judge(setups[key], results[key])]
    return runs


def _judged(folder: Path, name: str, task: TaskRecord) -> dict[str | None, TaskResult]:
    """A task under each of its judges, a later judgement by the same before that of the run; under None without any."""
    judged = {"judge_failed", *(JUDGED if task.judge else ())}
    free = {metric: value for metric, value in task.scores.items() if metric not in judged}
    own = TaskResult(free, {}, None, None, task)
    kept = KEY in task.scores  # the six benchmarks' files hold samples, motion_qa's do not
    if kept and task.samples and (folder / task.samples).exists():
        own = replace(own, intervals=intervals(read_samples(folder / task.samples)))
    results: dict[str | None, TaskResult] = {None: own}
    if task.judge is not None:
        scores = {metric: value for metric, value in task.scores.items() if metric in JUDGED}
        results[signature(task.judge)] = _add(own, scores, task.intervals, task.judge, task.judge_failed)
    for later in find_judgements(folder, [task.samples or ""]):
        summary = later.summary
        added = _add(own, summary.metrics, summary.intervals, later.judge, summary.failed_share)
        results[signature(later.judge)] = added
    return results


def _add(
    own: TaskResult,
    scores: dict[str, float | None],
    added: dict[str, Any],
    judge: dict[str, Any] | None,
    failed: float | None,
) -> TaskResult:
    pairs = {metric: (pair[0], pair[1]) if pair else None for metric, pair in added.items()}
    return replace(own, scores=own.scores | scores, intervals=own.intervals | pairs, judge=judge, judge_failed=failed)


def _by_judge(run: Run, results: dict[str, dict[str | None, TaskResult]]) -> list[Run]:
    """One run per judge, each with all tasks; those that a judge was not asked about with their judge-free metrics."""
    judges = dict.fromkeys(judge for found in results.values() for judge in found if judge is not None)
    return [
        replace(run, tasks={name: found.get(judge, found[None]) for name, found in results.items()})
        for judge in judges or [None]
    ]


def signature(judge: dict[str, Any] | None) -> str | None:
    """What makes two judges the same: model and prompts, not the address or the day."""
    return None if judge is None else json.dumps([judge.get("model"), judge.get("prompts")], sort_keys=True)


def intervals(samples: Sequence[Sample]) -> dict[str, Interval]:
    """95 % intervals of the metrics that need no judge, clustered by video; `answered` is a count and has none."""
    found = marks_by_metric(samples)
    return {metric: bootstrap(*columns) for metric, columns in found.items() if metric != KEY}
