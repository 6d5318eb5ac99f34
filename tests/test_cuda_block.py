"""The code that a CUDA block runs, on the CPU: same indices, same sums, no GPU. What a GPU adds is speed and races."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch
from operands import error, exact, operands

from dynimg_plugin import ops
from dynimg_plugin.ops.build import PACKAGE

SEED = int(time.time())
LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-3, torch.float16: 1e-3}
SHAPES = [
    {"dim": 16},
    {"dim": 64, "heads": 28, "kv_heads": 4},
    {"dim": 80, "tokens": 13},
    {"dim": 96, "rotary": 48},
    {"dim": 72, "rotary": 36, "heads": 3, "kv_heads": 1},  # 18 pairs: no 16-byte loads
    {"dim": 128, "heads": 1, "kv_heads": 1, "batch": 1},
    {"dim": 256, "tokens": 5, "table_batch": 2},
    {"dim": 512, "tokens": 3, "packed": False},
    {"tokens": 0},
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="compiles C++, and there is no c++ here"),
]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    from torch.utils.cpp_extension import load

    load(
        "dynimg_emulated",
        [str(Path(__file__).parent / "csrc" / "emulate.cpp")],
        extra_include_paths=[str(PACKAGE / "csrc")],
        extra_cflags=["-O1", "-ffp-contract=off"],
        build_directory=str(tmp_path_factory.mktemp("emulated")),
        is_python_module=False,
    )
    return torch.ops.dynimg_emulated


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_block_computes_what_the_reference_does(emulated, dtype, interleaved, narrow, shape):
    print("seed", SEED)
    tensors = operands(SEED, dtype, **{"tokens": 37, **shape})
    q_out, k_out, wide = emulated.forward(*tensors, interleaved, False, narrow)
    pairs = tensors[5].shape[1]
    assert wide == (not narrow and pairs % (16 // tensors[0].element_size()) == 0)
    generator = torch.Generator().manual_seed(5)
    incoming = [torch.randn(x.shape, generator=generator, dtype=torch.float64).bfloat16() for x in (q_out, k_out)]
    gradients = [
        x.to(dtype).transpose(1, 2).contiguous().transpose(1, 2) if x.numel() else x.to(dtype) for x in incoming
    ]
    dq, dk, dtheta = emulated.backward(*gradients, q_out, k_out, *tensors[2:], interleaved, True, narrow)
    truth = exact(tensors, interleaved)
    for ours, theirs in zip((q_out, k_out, dq, dk, dtheta), truth, strict=True):
        assert error(ours, theirs) <= LIMIT[dtype] * 1.5
    frozen = emulated.backward(*gradients, q_out, k_out, *tensors[2:], interleaved, False, narrow)
    assert torch.equal(frozen[0], dq)
    assert not frozen[2].any()


@pytest.mark.parametrize("dtype", LIMIT)
def test_a_block_rounds_as_the_native_cpu_operator_does(emulated, dtype):
    tensors = operands(SEED, dtype, dim=80)
    tensors[5].zero_()
    ours = ops.rope4d(*tensors, match_eager=True, implementation="native")
    for a, b in zip(emulated.forward(*tensors, False, True, False)[:2], ours, strict=True):
        assert torch.equal(a, b)
