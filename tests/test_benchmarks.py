"""What the benchmarks compare with is the real thing, and they refuse what they cannot measure."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from dynimg_plugin.config import KeepPolicy

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_rope_is_what_transformers_computes(monkeypatch, dtype):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from rope_arms import draw, eager_apply

    x = draw(40, dtype, 0)
    tables = [torch.cat((table, table), -1).to(dtype) for table in (x.cos, x.sin)]
    ours, theirs = eager_apply(x.q, x.k, *tables), apply_rotary_pos_emb(x.q, x.k, *tables)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("policy", get_args(KeepPolicy))
def test_kept_tokens_are_those_of_slicing_by_hand(monkeypatch, policy):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import token_budget

    assert token_budget.check(*token_budget.build(1, "cpu"), policy, "cpu") < 1e-4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_the_gpu_benchmark_says_that_there_is_no_gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["rope_gpu.py"])
    with pytest.raises(SystemExit, match=r"this torch sees none; rope\.py measures the CPU"):
        runpy.run_path(str(BENCHMARKS / "rope_gpu.py"), run_name="__main__")
