"""`dynimg check`: everything that can stop an evaluation, looked at before any weight is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dynimg_plugin.doctor import Finding
from dynimg_plugin.evaluation.current import Settings
from dynimg_plugin.evaluation.judging import Judge
from dynimg_plugin.evaluation.prompts import find_prompt
from dynimg_plugin.evaluation.rows import Row
from dynimg_plugin.evaluation.task_files import missing_videos, read_rows, task_configs, task_names

FREE_BYTES = 2**30  # answers, records and the judge's replies of all six benchmarks stay below
QUICK, PATIENT = 8.0, 60.0  # seconds for a judge's first reply: before `dynimg check` gives up, before a run does


def check(
    tasks: Sequence[str],
    settings: Settings,
    *,
    model: str | None = None,
    adapter: str | Path | None = None,
    options: dict[str, Any] | None = None,
    output: Path = Path("results"),
    missing_file: Path = Path("missing_videos.txt"),
) -> Iterator[Finding]:
    """One finding per task, for the judge, the checkpoint, the disk and the memory; `fix` is empty where all is well.

    Args:
        tasks: names of tasks and groups. options: DynImg options asked for.
        missing_file: gets the paths of all missing videos; not written when there are none.
    """
    missing: list[str] = []
    for name, config in task_configs(tasks).items():
        yield _task(name, config, settings, missing)
    if missing:
        missing_file.parent.mkdir(parents=True, exist_ok=True)
        missing_file.write_text("\n".join(dict.fromkeys(missing)) + "\n", "utf-8")
        yield Finding(
            "missing videos",
            f"{len(set(missing))}, listed in {missing_file}",
            "put them there, or leave their questions unanswered",
        )
    yield _judge(settings, QUICK)
    if model is not None:
        yield from _model(model, adapter, options or {})
    yield _disk(output)


def must_work(tasks: Sequence[str], settings: Settings, *, judging: bool) -> None:
    """Stop before hours are spent: the data can be read, the prompts are known and the judge answers.

    Raises:
        FileNotFoundError, ValueError: what is wrong. Single missing videos are not: they are counted in the results.
    """
    for config in task_configs(tasks).values():
        if config is not None and "rows" in config:
            _prompts(config, settings, read_rows(config, settings))
    if judging and (finding := _judge(settings, PATIENT)).fix:
        raise ValueError(f"judge {finding.value}: {finding.fix}; mend it, or run with --predict-only and judge later")


def _task(name: str, config: dict[str, Any] | None, settings: Settings, missing: list[str]) -> Finding:
    if config is None:
        meant = get_close_matches(name, task_names(), 1, cutoff=0.85)
        fix = f"did you mean {meant[0]}?" if meant else ""
        return Finding(name, "not a task of this package: its data is not looked at", fix)
    if "rows" not in config:
        return Finding(name, "draws its own videos")
    try:
        rows = read_rows(config, settings)
        prompts = _prompts(config, settings, rows)
    except (OSError, ValueError) as error:
        return Finding(name, "its data cannot be read", str(error))
    lost = missing_videos(rows)
    missing += lost
    videos = len({row.video for row in rows})
    expected = config["metadata"]["expected"]
    counts = f"{len(rows)} of {expected} questions, {videos - len(lost)} of {videos} videos"
    value = f"{counts}, split {config['test_split']}, {prompts} prompts"
    fixes = [f"videos missing: {len(lost)}, the first is {lost[0]}"] if lost else []
    if len(rows) != expected:
        fixes.append(f"the whole split has {expected} questions; scores on another part compare with nobody's")
    return Finding(name, value, "; ".join(fixes))


def _prompts(config: dict[str, Any], settings: Settings, rows: Sequence[Row]) -> str:
    """The variant that will be used, when it is known."""
    variant: str = settings.prompts or config["metadata"]["prompts"]
    find_prompt(variant, rows[0])
    return variant


def _judge(settings: Settings, seconds: float) -> Finding:
    if settings.judge_url is None or settings.judge_model is None:
        return Finding("judge", "none: judged metrics will be absent; `dynimg judge` can judge saved answers later")
    judge = Judge(settings.judge_url, settings.judge_model, timeout=seconds, retries=0)
    problem = judge.problem()
    return Finding("judge", f"{settings.judge_model} at {settings.judge_url}", problem or "")


def _model(model: str, adapter: str | Path | None, options: dict[str, Any]) -> Iterator[Finding]:
    from dynimg_plugin.fitting import check_adapter, weight_bytes
    from dynimg_plugin.loading import check_checkpoint, stored_config

    try:
        tower = check_checkpoint(model)
        config = stored_config(model, adapter).with_options(options)
        needed = weight_bytes(model)
    except (OSError, ValueError) as error:
        yield Finding("checkpoint", "cannot be used", str(error))
        return
    size = f"{needed / 1e9:.1f} GB of weights" if needed else "weights not here yet, the hub has them"
    grid = f"grid {tower['grid']} x {tower['grid']}"
    yield Finding("checkpoint", f"{model}, {grid}, patch {tower['patch_size']}, {size}")
    if adapter is not None:
        try:
            yield Finding("adapter", check_adapter(model, adapter, config))
        except (OSError, ValueError) as error:
            yield Finding("adapter", "does not fit", str(error))
    if needed:
        yield _memory(needed)


def _memory(needed: int) -> Finding:
    """Weights alone; answers about one video take little beside them."""
    import torch

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        where = "on the CUDA device"
    else:
        lines = Path("/proc/meminfo").read_text("ascii") if Path("/proc/meminfo").exists() else ""
        found = [int(line.split()[1]) * 1024 for line in lines.splitlines() if line.startswith("MemAvailable")]
        if not found:
            return Finding("memory", "free memory is not known on this system")
        free, where = found[0], "of main memory"
    fix = "" if free > needed else f"the weights alone need {needed / 1e9:.1f} GB: free memory, or use device_map=auto"
    return Finding("memory", f"{free / 1e9:.1f} GB free {where}", fix)


def _disk(output: Path) -> Finding:
    place = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    fix = "" if free > FREE_BYTES else "results of all benchmarks take up to 1 GB: free some, or give another folder"
    return Finding("disk", f"{free / 1e9:.1f} GB free at {place}", fix)
