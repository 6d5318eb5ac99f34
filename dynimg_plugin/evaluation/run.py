"""Run lmms-eval's own command line and tell truly whether it succeeded: its exit code is 0 even after an error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynimg_plugin.evaluation.judging import MAX_FAILED, JudgeFailed
from dynimg_plugin.evaluation.record import RECORD, RESULTS, RunRecord


def run_lmms_eval(
    model_args: Mapping[str, Any],
    tasks: str,
    output_path: Path,
    *,
    limit: int | None = None,
    batch_size: int = 1,
    predict_only: bool = False,
) -> Path:
    """`python -m lmms_eval --model llava_dynimg ...`, its output passed through; returns the results file.

    Args:
        model_args: arguments of LlavaDynImg; None values are left out.
        tasks: names separated by commas.
        predict_only: judge nothing.

    Raises:
        ValueError: when no results file was written.
        JudgeFailed: the results are written, but more than 1 % of some task's answers have no verdict.
    """
    for name, value in model_args.items():
        if "," in str(value) or "=" in str(value):
            raise ValueError(
                f"{name}={value} holds a comma or an equals sign, which lmms-eval's model_args cannot carry"
            )
    given = ",".join(f"{name}={value}" for name, value in model_args.items() if value is not None)
    command = [sys.executable, "-m", "lmms_eval", "--model", "llava_dynimg", "--model_args", given, "--tasks", tasks]
    command += ["--batch_size", str(batch_size), "--log_samples", "--output_path", str(output_path)]
    command += [] if limit is None else ["--limit", str(limit)]
    command += ["--predict_only"] if predict_only else []
    before = _results(output_path)
    sys.stdout.flush()
    subprocess.run(command, check=False)
    written = sorted(_results(output_path) - before)
    if not written:
        raise ValueError(f"lmms-eval wrote no results for tasks {tasks!r}; the reason stands above")
    _check_judge(written[-1])
    return written[-1]


def _check_judge(results: Path) -> None:
    """Raise JudgeFailed when the record beside the results tells of too many answers without a verdict."""
    record = results.with_name(results.name.removesuffix(RESULTS) + RECORD)
    tasks = RunRecord.load(record).tasks if record.exists() else {}
    failed = {name: task.judge_failed for name, task in tasks.items() if (task.judge_failed or 0) > MAX_FAILED}
    if failed:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in failed.items())
        raise JudgeFailed(
            f"judge_failed above {MAX_FAILED:.0%}: {shares}. The answers are saved in {results.parent}: mend the judge "
            "and run the same command again, or `dynimg judge` them; only what has no verdict will be asked"
        )


def _results(folder: Path) -> set[Path]:
    return set(folder.rglob(f"*{RESULTS}"))
