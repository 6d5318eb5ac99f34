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


POINTERS = {"q", "k", "q_out", "k_out", "gq", "gk", "yq", "yk", "dq", "dk"}
SIZES = {"HEADS_Q": 28, "HEADS_K": 4, "TOKENS": 4, "BLOCK_P": 64, "BLOCK_H": 32}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["_forward", "_backward"])
@pytest.mark.parametrize(("dtype", "acc", "interleaved"), [("bf16", "fp32", False), ("fp16", "fp32", True)])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(name, dtype, acc, interleaved):
    """The interpreter takes more than the compiler does."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dynimg_plugin.ops import triton_kernels

    kernel = getattr(triton_kernels, name)
    switches = {"INTERLEAVED": interleaved, "EAGER": True, "THETA": True, "DOUBLE": False}
    constants = SIZES | switches | {"BLOCK_REST": 32 if interleaved else 0}
    kinds = dict.fromkeys(POINTERS, f"*{dtype}") | dict.fromkeys(
        ("cos", "sin", "coordinates", "theta", "parts"), f"*{acc}"
    )
    kinds |= dict.fromkeys(("blocks", "tokens", "d", "dim"), "i32") | {"cs": ("i64", "i64")}
    kinds |= dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, ("i64",) * 3) for name in kernel.arg_names}  # what is left are strides
    values = {(at,): constants[name] for at, name in enumerate(kernel.arg_names) if name in constants}
    source = ASTSource(kernel, signature, values)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": False})
    assert len(compiled.asm["cubin"]) > 1000


@pytest.mark.needs_cuda
def test_values_gradients_and_repeats_on_a_gpu():
    assert "equal" in run("cuda")
