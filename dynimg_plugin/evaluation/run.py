"""Run lmms-eval's own command line and tell truly whether it succeeded: its exit code is 0 even after an error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def run_lmms_eval(
    model_args: Mapping[str, Any], tasks: str, output_path: Path, *, limit: int | None = None, batch_size: int = 1
) -> Path:
    """`python -m lmms_eval --model llava_dynimg ...`, its output passed through; returns the results file.

    Args:
        model_args: arguments of LlavaDynImg; None values are left out.
        tasks: names separated by commas.

    Raises:
        ValueError: when no results file was written.
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
    before = _results(output_path)
    sys.stdout.flush()
    subprocess.run(command, check=False)
    written = sorted(_results(output_path) - before)
    if not written:
        raise ValueError(f"lmms-eval wrote no results for tasks {tasks!r}; the reason stands above")
    return written[-1]


def _results(folder: Path) -> set[Path]:
    return set(folder.rglob("*_results.json"))
