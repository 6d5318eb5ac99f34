"""What `dynimg judge` prints of a judgement."""

from __future__ import annotations

from pathlib import Path

from dynimg_plugin.evaluation.judging.saved import VERDICTS, Judgement, beside
from dynimg_plugin.evaluation.reporting.markdown import number
from dynimg_plugin.evaluation.samples import judge_free, read_samples


def judged_lines(path: Path, judgement: Judgement | None, asked: int) -> list[str]:
    """The numbers of a sample file: the judge's, how many requests failed, and those that need no judge."""
    if judgement is None:
        return [f"{path.name}: nothing to judge"]
    summary, judge = judgement.summary, judgement.judge
    judged = {name: number(name, value, summary.intervals[name]) for name, value in summary.metrics.items()}
    failed = {"judge_failed": f"{summary.failed} of {summary.total} ({summary.failed_share:.1%})"}
    free = {name: f"{number(name, value)} (no judge)" for name, value in judge_free(read_samples(path)).items()}
    lines = [f"{judgement.task}, judged by {judge['model']} ({judge['date']}), requests sent: {asked}"]
    lines += [f"  {name:<14} {text}" for name, text in {**judged, **failed, **free}.items()]
    lines += [f"  {count} x {reason}" for reason, count in list(summary.reasons.items())[:5]]
    return [*lines, f"  every verdict -> {beside(path, judge['model'], VERDICTS)}"]
