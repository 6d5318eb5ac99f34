"""The report as text: scores beside the paper's, what each run was, what to bear in mind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from string import ascii_uppercase

from dynimg_plugin.evaluation.judging.scores import MAX_FAILED
from dynimg_plugin.evaluation.paper_numbers import REPORTED, Reported, reported
from dynimg_plugin.evaluation.reporting.markdown import number, table
from dynimg_plugin.evaluation.reporting.runs import JUDGED, Run, TaskResult, signature
from dynimg_plugin.evaluation.reporting.setup import setup_rows, versions_note
from dynimg_plugin.evaluation.samples import is_category

PAPER = ("paper: DynImg", "paper: PLLaVA-7B")
ORIGIN = (
    "Columns headed by a letter were measured here. Those headed `paper` are quoted as reported, under a GPT-3.5 judge "
    "of unknown version; nothing of ours is in them."
)


def render(runs: Sequence[Run], *, all_metrics: bool = False) -> str:
    """The report: scores, then what each run was, then what to bear in mind.

    Args:
        runs: at most 26.
        all_metrics: with MVBench's tasks for which the paper's figure is not known.
    """
    names = {name: run for name, run in zip(ascii_uppercase, runs, strict=False)}
    if len(names) < len(runs):
        raise ValueError(f"{len(runs)} runs do not fit side by side; at most {len(names)} do")
    scores = table(["task", "metric", *names, *PAPER], _score_rows(runs, all_metrics))
    setup = table(["", *names], setup_rows(runs))
    return "\n\n".join([scores, setup, "\n".join(f"- {note}" for note in _notes(names))])


def _score_rows(runs: Sequence[Run], all_metrics: bool) -> Iterable[list[str]]:
    for task in _in_order(name for run in runs for name in run.tasks):
        found = [run.tasks.get(task) for run in runs]
        label = task
        for metric in _metrics(task, found, all_metrics):
            figure = reported(task, metric)
            paper = ["" if value is None else f"{value:g}" for value in _quoted(figure)]
            yield [label, metric, *(_cell(metric, result) for result in found), *paper]
            label = ""
        for name, cell in FACTS.items():
            cells = [cell(result) if result else "" for result in found]
            if any(cells):
                yield ["", name, *cells, "", ""]


def _quoted(figure: Reported | None) -> tuple[float | None, float | None]:
    return (figure.dynimg, figure.baseline) if figure else (None, None)


def _cell(metric: str, result: TaskResult | None) -> str:
    if result is None or metric not in result.scores:
        return ""
    warning = " (!)" if metric in JUDGED and _void(result) else ""
    return number(metric, result.scores[metric], result.intervals.get(metric)) + warning


def _void(result: TaskResult) -> bool:
    return (result.judge_failed or 0) > MAX_FAILED


def _metrics(task: str, found: Sequence[TaskResult | None], all_metrics: bool) -> list[str]:
    """Those with a figure of the paper first, then what else was judged, MVBench's tasks last."""
    metrics = dict.fromkeys(metric for result in found if result for metric in result.scores)
    shown = [metric for metric in metrics if all_metrics or reported(task, metric) or not is_category(metric)]
    return sorted(shown, key=lambda metric: (is_category(metric), reported(task, metric) is None, metric not in JUDGED))


def _in_order(tasks: Iterable[str]) -> list[str]:
    """The paper's tasks in the paper's order, then the others."""
    known = list(dict.fromkeys(figure.task for figure in REPORTED))
    return sorted(dict.fromkeys(tasks), key=lambda task: (known.index(task) if task in known else len(known), task))


def _failed(result: TaskResult) -> str:
    if result.judge_failed is None:
        return ""
    return f"{result.judge_failed:.1%}" + (" (!)" if _void(result) else "")


def _questions(result: TaskResult) -> str:
    record = result.record
    partial = record.expected is not None and record.questions < record.expected
    return f"{record.questions} of {record.expected} (part)" if partial else str(record.questions)


def _unreadable(result: TaskResult) -> str:
    videos = len(result.record.unreadable)
    return f"{videos} (questions: {result.record.unanswered})" if videos else ""


FACTS: dict[str, Callable[[TaskResult], str]] = {
    "judge_failed": _failed,
    "questions": _questions,
    "unreadable videos": _unreadable,
    "split": lambda result: result.record.split or "",
    "prompts": lambda result: result.record.prompts or "",
}


def _notes(names: dict[str, Run]) -> Iterable[str]:
    yield ORIGIN
    yield "[low, high]: 95 %, from whole videos drawn anew 1000 times. Accuracies are percent, scores go from 0 to 5."
    judges = {name: run.judge for name, run in names.items() if run.judge is not None}
    if len({(signature(judge), str(judge.get("served_by"))) for judge in judges.values()}) > 1:
        yield f"{', '.join(judges)} were not all judged by the same judge: their judged figures do not compare."
    for name, run in names.items():
        if void := [f"{task} {result.judge_failed:.1%}" for task, result in run.tasks.items() if _void(result)]:
            yield f"(!) {name}: requests to the judge without a verdict: {', '.join(void)}; judge again."
    if any("(part)" in _questions(result) for run in names.values() for result in run.tasks.values()):
        yield "(part): not all questions of the split were asked."
    shown = {(task, metric) for run in names.values() for task, one in run.tasks.items() for metric in one.scores}
    yield versions_note(list(names.values()))
    yield from dict.fromkeys(
        f"paper, {figure.task}: {figure.note}."
        for figure in REPORTED
        if figure.note and (figure.task, figure.metric) in shown
    )
