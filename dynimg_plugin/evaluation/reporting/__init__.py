"""Runs side by side with the paper's figures: collected from result records, printed as one markdown table."""

from dynimg_plugin.evaluation.reporting.judged import judged_lines
from dynimg_plugin.evaluation.reporting.render import render
from dynimg_plugin.evaluation.reporting.runs import Run, TaskResult, collect

__all__ = ["Run", "TaskResult", "collect", "judged_lines", "render"]
