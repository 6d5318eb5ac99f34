"""Run by test_triton.py: the Triton kernels against float64, on the CPU with Triton's interpreter or on a GPU."""

from __future__ import annotations

import sys

import torch
from operands import error, exact, operands, outputs_and_gradients

import dynimg_plugin.ops.triton_kernels  # noqa: F401
from dynimg_plugin import ops

SHAPES = [
    {"dim": 16, "heads": 3, "kv_heads": 1, "tokens": 6},
    {"dim": 24, "rotary": 16, "batch": 1, "heads": 3, "kv_heads": 1, "tokens": 6},
    {"dim": 20, "heads": 2, "kv_heads": 2, "tokens": 5, "table_batch": 2, "packed": False},
]
# The interpreter cuts bf16 off instead of rounding it, so bf16 is checked on a GPU alone.
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3}
triton = torch.ops.dynimg_triton

if __name__ == "__main__":
    device = sys.argv[1]
    limits = LIMITS | ({torch.bfloat16: 3e-3} if device == "cuda" else {})
    for dtype, limit in limits.items():
        for shape in SHAPES if dtype == torch.float32 or device == "cuda" else SHAPES[:1]:
            for interleaved in (False, True):
                tensors = [x.to(device) for x in operands(3, dtype, **shape)]
                ours = outputs_and_gradients(lambda *x, i=interleaved: triton.rope4d(*x, i, False), tensors)
                worst = max(error(a, b) for a, b in zip(ours, exact(tensors, interleaved), strict=True))
                assert worst <= limit, (dtype, shape, interleaved, worst)
                if shape is not SHAPES[0]:
                    continue
                again = outputs_and_gradients(lambda *x, i=interleaved: triton.rope4d(*x, i, False), tensors)
                assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
                q, k = (x.clone() for x in tensors[:2])
                triton.rope4d_(q, k, *tensors[2:], interleaved, False)
                assert torch.equal(q, ours[0])
                assert torch.equal(k, ours[1])
        tensors = [x.to(device) for x in operands(3, dtype, dim=16, batch=1, tokens=5)]
        tensors[5].zero_()
        plain = ops.rope4d(*tensors, match_eager=True, implementation="reference")
        assert all(torch.equal(a, b) for a, b in zip(triton.rope4d(*tensors, False, True), plain, strict=True))
        empty = [x.to(device) for x in operands(3, dtype, tokens=0)]
        assert triton.rope4d(*empty, False, False)[0].shape == empty[0].shape
    print("equal")
