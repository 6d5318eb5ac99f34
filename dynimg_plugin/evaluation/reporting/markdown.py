"""Markdown tables whose columns also line up in a terminal, and the numbers in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dynimg_plugin.evaluation.judging.scores import ASPECT_METRICS, Interval


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table, its columns padded."""
    lines = [[cell.replace("|", r"\|") for cell in line] for line in (head, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    printed = [f"| {' | '.join(line)} |" for line in padded]
    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([printed[0], rule, *printed[1:]])


def number(metric: str, value: float | None, interval: Interval = None) -> str:
    """Percent with one digit, scores from 0 to 5 with two; a dash where there is none."""
    if value is None:
        return "-"
    digits = 2 if metric == "score" or metric in ASPECT_METRICS else 1
    between = f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else ""
    return f"{value:.{digits}f}{between}"
