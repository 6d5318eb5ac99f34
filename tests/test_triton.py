"""The Triton twin: its own code run by Triton's interpreter where there is no GPU, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def run(device: str, **environment: str) -> str:
    command = [sys.executable, str(Path(__file__).with_name("triton_cases.py")), device]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_values_gradients_and_repeats_in_the_interpreter():
    assert "equal" in run("cpu", TRITON_INTERPRET="1")


@pytest.mark.needs_cuda
def test_values_gradients_and_repeats_on_a_gpu():
    assert "equal" in run("cuda")
