"""What each run was: the second table of the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.evaluation.disk import digest
from dynimg_plugin.evaluation.reporting.runs import Run


def setup_rows(runs: Sequence[Run]) -> Iterable[list[str]]:
    """One row per fact, one cell per run; versions only where they differ."""
    rows = [_setup(run) | dict(sorted(_versions(run) - _shared(runs))) for run in runs]
    for name in dict.fromkeys(name for row in rows for name in row):
        yield [name, *(row.get(name, "") for row in rows)]


def versions_note(runs: Sequence[Run]) -> str:
    """The versions that are the same in all runs."""
    return f"Versions: {', '.join(' '.join(pair) for pair in sorted(_shared(runs))) or 'none in common'}."


def _versions(run: Run) -> set[tuple[str, str]]:
    return set(run.record.versions.items())


def _shared(runs: Sequence[Run]) -> set[tuple[str, str]]:
    return set.intersection(*map(_versions, runs))


def _setup(run: Run) -> dict[str, str]:
    """What the run was: options of DynImg only where they are not the default."""
    record, judge = run.record, run.judge
    defaults = DynImgConfig().to_dict()
    changed = {name: value for name, value in (record.dynimg or {}).items() if defaults.get(name) != value}
    measured = record.measured or {}
    seconds = measured.get("seconds_per_video") or {}
    rows = {
        "results": run.folder,
        "date": record.date,
        "model": record.model,
        "checkpoint": record.checkpoint,
        "adapter": record.adapter,
        "DynImg options": " ".join(f"{name}={value}" for name, value in changed.items()) or "the defaults",
        "judge": judge and judge["model"],
        "judge, by its own name": judge and ", ".join(judge.get("served_by", [])),
        "judge's prompts": judge and digest(judge.get("prompts"))[:12],
        "judged": judge and judge["date"],
        "tokens per video": _short(measured.get("tokens_per_video")),
        "I-frames used": _short(measured.get("iframe_share"), ".0%"),
        **{f"s per video, {part}": _short(value, ".3f") for part, value in seconds.items()},
    }
    return {name: str(value) for name, value in rows.items() if value}


def _short(value: float | None, form: str = ".0f") -> str:
    return "" if value is None else format(value, form)
