"""What the paper and its comparison table report: quoted, never measured here, and never mixed with our own figures.

The body of the paper is not public text; these figures come from secondary notes on it, those of PLLaVA from its own
paper. All of them were judged by a GPT-3.5 of unknown version (PLLaVA: 0125): only differences under one judge compare.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reported:
    """One figure of a paper.

    Attributes:
        task: the lmms-eval task of this package that measures the same.
        metric: its metric there.
        dynimg: what the paper reports for DynImg (SigLIP-so400m + Qwen2.5-7B).
        baseline: what its comparison table reports for PLLaVA-7B; None where it is not known.
        note: what makes the figure hard to compare.
    """

    task: str
    metric: str
    dynimg: float
    baseline: float | None = None
    note: str = ""


DERIVED = "derived: PLLaVA-7B's own figure plus the reported gain"

REPORTED = (
    Reported("msvd_qa", "accuracy", 78.6, 76.6),
    Reported("msvd_qa", "score", 4.2, 4.1),
    Reported("msrvtt_qa", "accuracy", 64.1, 62.0),
    Reported("tgif_qa", "accuracy", 77.5, 77.5),
    Reported("dynimg_activitynetqa", "accuracy", 57.9, 56.3),
    Reported("dynimg_videochatgpt", "per_judgement", 3.25, 3.12, "which average it is, is not said"),
    Reported("dynimg_videochatgpt", "aspect_mean", 3.25, 2.99, "which average it is, is not said"),
    Reported("dynimg_mvbench", "accuracy_macro", 55.8, 46.6),
    Reported("dynimg_mvbench", "accuracy_moving_direction", 44.5, 23.5, DERIVED),
    Reported("dynimg_mvbench", "accuracy_moving_count", 57.0, 42.0, DERIVED),
    Reported("dynimg_mvbench", "accuracy_moving_attribute", 78.5, 52.0, DERIVED),
)


def reported(task: str, metric: str) -> Reported | None:
    """The figure for one metric of one task, or None when the paper gives none."""
    return next((figure for figure in REPORTED if (figure.task, figure.metric) == (task, metric)), None)
