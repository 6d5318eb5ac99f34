"""From answered questions to lmms-eval's numbers: which metrics a task has, a sample's value for each, their means."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from dynimg_plugin.evaluation.current import Evaluation
from dynimg_plugin.evaluation.judging import ASPECT_METRICS, QA_METRICS, JudgeFailed, Summary, summarise
from dynimg_plugin.evaluation.judging.saved import requests_of
from dynimg_plugin.evaluation.samples import CATEGORY, KEY, Sample, judge_free

logger = logging.getLogger(__name__)
Scoring = Literal["open", "aspects", "choice"]
MARKS = ("exact_match", "contained", "word_f1")
JUDGED = {"open": (*QA_METRICS, "judge_failed"), "aspects": (*ASPECT_METRICS, "judge_failed"), "choice": ()}


class TaskScores:
    """The metrics of one task.

    Args:
        task: its name. scoring: open questions, Video-ChatGPT's aspects, or multiple choice.
        categories: the tasks within the task, each of which gets an accuracy of its own.
        paths: video's name -> its file, by which the model tells why it could not be read.
        evaluation: whose settings name the judge, and where the outcome is noted for the record.
    """

    def __init__(
        self, task: str, scoring: Scoring, categories: Sequence[str], paths: dict[str, str], evaluation: Evaluation
    ) -> None:
        self.task, self.evaluation, self._paths = task, evaluation, paths
        self.judging = evaluation.settings.judge_url is not None
        own = ["accuracy_micro", *(f"{CATEGORY}{name}" for name in categories), "names_option"]
        self.plain = own if scoring == "choice" else list(MARKS)
        self.judged = JUDGED[scoring]
        self.macro = ["accuracy_macro"] if categories else []
        self._summary: tuple[list[Sample], Summary] | None = None

    @property
    def aggregations(self) -> dict[str, Callable[[Sequence[Any]], float]]:
        """Metric -> from all samples' values to the number; judged ones first, as the papers report them."""
        judged = {name: partial(self._judged, name) for name in self.judged}
        macro = dict.fromkeys(self.macro, macro_mean)
        return {**judged, **macro, **dict.fromkeys(self.plain, mean_score), KEY: self._answered}

    def values(self, sample: Sample) -> dict[str, Any]:
        """What one sample gives to each metric; None where it does not count. Without a judge, no judged metric."""
        whole = [*(self.judged if self.judging else ()), *self.macro]  # lmms-eval's error of a plain mean is not theirs
        scores: dict[str, Any] = dict.fromkeys(whole, None if sample.unreadable else sample)
        scores |= {name: self._value(sample, name) for name in self.plain}
        return {**scores, KEY: sample.to_dict()}

    @staticmethod
    def _value(sample: Sample, metric: str) -> dict[str, Any] | None:
        return {"score": sample.marks[metric], "video": sample.video} if metric in sample.marks else None

    def _answered(self, values: Sequence[dict[str, Any]]) -> float:
        """The share of questions whose video could be read; which could not is noted for the record."""
        lost = [value["video"] for value in values if value["unreadable"]]
        reasons = self.evaluation.measured.unreadable
        self.evaluation.tasks[self.task] |= {
            "unreadable": {
                video: reasons.get(self._paths[video], "could not be read by another process")
                for video in dict.fromkeys(lost)
            },
            "unanswered": len(lost),
        }
        if self.judged and not self.judging:
            logger.warning("%s: not judged (no judge_url); `dynimg judge` can do it later", self.task)
        return mean_score(values)

    def _judged(self, metric: str, samples: Sequence[Sample | None]) -> float:
        summary = self._summarised([sample for sample in samples if sample is not None])
        value = 100.0 * summary.failed_share if metric == "judge_failed" else summary.metrics.get(metric)
        return math.nan if value is None else value

    def _summarised(self, samples: list[Sample]) -> Summary:
        """All samples judged, once for all metrics."""
        if self._summary is None or self._summary[0] != samples:
            judge = self.evaluation.the_judge()
            requests = requests_of(samples)
            summary = summarise(requests, judge.verdicts(requests))
            self.evaluation.tasks[self.task] |= {
                "judge": judge.identity,
                "judge_failed": summary.failed_share,
                "intervals": summary.intervals,
            }
            self._summary = samples, summary
            try:
                summary.check()
            except JudgeFailed as error:  # the answers are saved and the record says so; `dynimg eval` fails for it
                logger.error("%s: %s", self.task, error)
        return self._summary[1]


def mean_score(values: Sequence[dict[str, Any] | None]) -> float:
    """The mean of the scores; nan where no sample counts, as in a limited run that does not reach a category."""
    scores = [value["score"] for value in values if value is not None]
    return sum(scores) / len(scores) if scores else math.nan


def macro_mean(samples: Sequence[Sample | None]) -> float:
    """The mean of the categories' means, so that each counts alike; nan where no sample counts."""
    macro = judge_free(sample for sample in samples if sample is not None).get("accuracy_macro")
    return math.nan if macro is None else macro
