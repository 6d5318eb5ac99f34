"""The 4D RoPE operator: native C++ against float64, its gradients, what it keeps for the backward pass, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operands import error, exact, operands, outputs_and_gradients, theta_scale
from torch._subclasses.fake_tensor import FakeTensorMode

from dynimg_plugin import ops
from dynimg_plugin.ops import implementations, reference
from dynimg_plugin.ops.native import load_native

SEED = int(time.time())
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)]
LIMIT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-3, torch.float16: 1e-3}
THETA_LIMIT = {**LIMIT, torch.bfloat16: 3e-3}
native = torch.ops.dynimg


@pytest.fixture(autouse=True)
def compiled(request):
    """These tests are about the compiled operator; a machine without a compiler says so instead of passing idly."""
    needed = "cuda" if "cuda" in request.node.name else "cpu"
    if needed not in load_native().devices:
        pytest.skip(f"no native operator for {needed}: {load_native().why}")


def rope4d(*tensors, interleaved=False, match_eager=False):
    return ops.rope4d(*tensors, interleaved=interleaved, match_eager=match_eager, implementation="native")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [16, 64, 80, 96, 128, 256])
def test_values_and_gradients_against_float64(device, dtype, interleaved, dim):
    print("seed", SEED)
    tensors = [x.to(device) for x in operands(SEED, dtype, dim=dim, tokens=130)]
    truth = exact(tensors, interleaved)
    *values, dtheta = outputs_and_gradients(lambda *x: rope4d(*x, interleaved=interleaved), tensors)
    for ours, theirs in zip(values, truth, strict=False):
        assert ours.dtype == dtype
        assert error(ours, theirs) <= LIMIT[dtype]
    assert error(dtheta, truth[4]) <= THETA_LIMIT[dtype]


@given(
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(DTYPES),
    dim=st.sampled_from([16, 22, 64, 80, 96, 128, 256]),  # 22: an odd number of pairs
    share=st.sampled_from([1.0, 0.5, 0.25]),
    tokens=st.integers(0, 70),
    batch=st.integers(0, 3),
    groups=st.sampled_from([(1, 1), (4, 4), (7, 1), (6, 2)]),
    table_rows=st.booleans(),
    position=st.sampled_from([1, 1000, 131_072]),
    packed=st.booleans(),
    interleaved=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_any_shape_and_stride(
    seed, dtype, dim, share, tokens, batch, groups, table_rows, position, packed, interleaved
):
    rotary = max(2, int(dim * share) // 2 * 2)
    tensors = operands(
        seed, dtype, dim=dim, rotary=rotary, batch=batch, heads=groups[0], kv_heads=groups[1], tokens=tokens,
        table_batch=batch if table_rows else 1, position=position, packed=packed,
    )  # fmt: skip
    ours = outputs_and_gradients(lambda *x: rope4d(*x, interleaved=interleaved), tensors)
    truths = exact(tensors, interleaved)
    for value, truth in zip(ours, truths, strict=True):
        assert value.shape == truth.shape
        assert value.isfinite().all()
    assert all(error(value, truth) <= LIMIT[dtype] for value, truth in zip(ours[:4], truths, strict=False))
    # few tokens: theta's gradient may nearly cancel, so its error is held against the size of its summands
    assert (ours[4].double() - truths[4]).norm() <= LIMIT[dtype] * theta_scale(tensors, interleaved)


@pytest.mark.parametrize("position", [1, 1000, 131_072])
def test_coordinates_may_be_as_large_as_positions(position):
    tensors = operands(SEED)
    tensors[4] = tensors[4].sign() * position
    truth = exact(tensors)
    assert max(error(a, b) for a, b in zip(outputs_and_gradients(rope4d, tensors), truth, strict=True)) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [40, 42])
def test_theta_zero_gives_eager_bits(dtype, interleaved, rotary):
    tensors = operands(SEED, dtype, dim=80, rotary=rotary)
    tensors[5].zero_()
    ours = rope4d(*tensors, interleaved=interleaved, match_eager=True)
    eager = [reference.apply(x, *(t.to(dtype) for t in tensors[2:4]), interleaved) for x in tensors[:2]]
    assert all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True))


@pytest.mark.parametrize("match_eager", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_stay_what_they_are(dtype, match_eager):
    tensors = operands(SEED, dtype)
    tensors[0][0, 0, 30, 0], tensors[1][1, 1, 40, 3] = torch.nan, torch.inf
    # rounding such a NaN as a number would carry through all its ones, to -0
    tensors[2][0, 3, 5] = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    truth = reference.rope4d(*tensors, match_eager=match_eager)
    for ours, theirs in zip(rope4d(*tensors, match_eager=match_eager), truth, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.isinf(), theirs.isinf())
        assert ours.isnan().sum() > ours.shape[0] * ours.shape[1]


@pytest.mark.parametrize("interleaved", [False, True])
def test_gradcheck(interleaved):
    q, k, cos, sin, coordinates, theta = operands(SEED, torch.float64, dim=10, rotary=8, batch=1, heads=2, tokens=5)
    leaves = [x.requires_grad_() for x in (q, k, theta)]
    assert torch.autograd.gradcheck(
        lambda q, k, theta: rope4d(q, k, cos, sin, coordinates, theta, interleaved=interleaved), leaves
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_all_forms(dtype):
    q, k, *tables = operands(SEED, dtype, tokens=9)
    grown = [x.clone().requires_grad_() for x in (q, k)] + tables[:3] + [tables[3].clone().requires_grad_()]
    for operator, arguments in (
        (native.rope4d.default, (*grown, False, True)),
        (native.rope4d_.default, (q.clone(), k.clone(), *tables, False, True)),
        (native.rope4d_backward.default, (q, k, q.clone(), k.clone(), *tables, False, True)),
    ):
        assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}


@pytest.mark.slow
@pytest.mark.parametrize("learns", [False, True])
def test_compiled_fullgraph_is_equal(learns):
    tensors = operands(SEED, torch.bfloat16)
    for index in (0, 1, 5):
        tensors[index].requires_grad_(learns)
    compiled = torch.compile(lambda *x: ops.rope4d(*x, match_eager=True), fullgraph=True)
    plain = ops.rope4d(*tensors, match_eager=True)
    assert all(torch.equal(a, b) for a, b in zip(compiled(*tensors), plain, strict=True))
    if learns:
        gradients = [
            torch.autograd.grad(sum(x.float().square().sum() for x in f(*tensors)), [tensors[i] for i in (0, 1, 5)])
            for f in (compiled, lambda *x: ops.rope4d(*x, match_eager=True))
        ]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_theta_gradient_is_the_same_bits_every_time(device):
    tensors = [x.to(device) for x in operands(SEED, torch.bfloat16, tokens=1000)]
    results = []
    for threads in (1, 2, 1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        results.append(outputs_and_gradients(rope4d, tensors))
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts the CPU time of threads in /proc")
def test_two_threads_share_the_work():
    """Otherwise 'the same bits on 1 and 2 threads' would be true of one thread."""

    def ticks() -> Counter:
        lines = {path.name: (path / "stat").read_text() for path in Path("/proc/self/task").iterdir()}
        return Counter({name: sum(map(int, line.rpartition(")")[2].split()[11:13])) for name, line in lines.items()})

    tensors, before = operands(SEED, heads=16, tokens=4096), torch.get_num_threads()
    torch.set_num_threads(2)
    start, end = ticks(), time.monotonic() + 20
    while len(+(ticks() - start)) < 2 and time.monotonic() < end:
        rope4d(*tensors)
    torch.set_num_threads(before)
    assert len(+(ticks() - start)) >= 2


def test_a_second_derivative_is_refused():
    tensors = operands(SEED)
    theta = tensors[5].requires_grad_()
    (first,) = torch.autograd.grad(rope4d(*tensors)[0].square().mul(tensors[0]).sum(), theta, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; use implementation='reference'"):
        torch.autograd.grad(first.sum(), theta)


def test_writing_in_place_is_noticed_by_a_graph_that_kept_the_values():
    tensors = operands(SEED)
    weight = torch.ones((), requires_grad=True)
    product = weight * tensors[0]
    ops.rope4d_(*tensors)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_memory_that_is_shared_is_not_written_to():
    tensors = operands(SEED, kv_heads=1)
    tensors[1] = tensors[1].expand(-1, 4, -1, -1)
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        ops.rope4d_(*tensors)
    rotated = rope4d(*tensors)[1]
    assert torch.equal(rotated[:, 0], rotated[:, 3])


def test_tables_of_any_dtype_and_stride_are_taken():
    tensors = operands(SEED)
    expected = rope4d(*tensors)
    tensors[3] = tensors[3].transpose(1, 2).contiguous().transpose(1, 2)
    assert all(torch.equal(a, b) for a, b in zip(rope4d(*tensors), expected, strict=True))
    for implementation in ("native", "reference"):
        halved = [*tensors[:2], *(x.bfloat16() for x in tensors[2:])]
        wide = [*tensors[:2], *(x.float() for x in halved[2:])]
        results = [ops.rope4d(*x, implementation=implementation) for x in (halved, wide)]
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_first_use_may_be_in_any_context():
    with torch.device("meta"), torch.inference_mode():
        assert implementations._worst_error("native", "cpu") < 1e-4
    with FakeTensorMode():
        assert implementations._worst_error("native", "cpu") < 1e-4


def test_only_the_roped_outputs_are_kept_for_the_backward_pass():
    q, k, cos, sin, coordinates, theta = operands(SEED, torch.bfloat16)
    leaves = [x.requires_grad_() for x in (q, k, theta)]
    kept = Counter()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.update([x.data_ptr()]) or x, lambda x: x):
        outputs = rope4d(*leaves[:2], cos, sin, coordinates, leaves[2])
        after_operator = set(kept)
        keys = outputs[1].repeat_interleave(3, 1)
        torch.nn.functional.scaled_dot_product_attention(outputs[0], keys, keys)
    tables = {x.data_ptr() for x in (cos, sin, coordinates, theta)}
    assert after_operator - tables == {x.data_ptr() for x in outputs}
    assert kept[outputs[0].data_ptr()] >= 2, "attention keeps the roped q too"
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.update([x.data_ptr()]) or x, lambda x: x):
        rope4d(*leaves[:2], cos, sin, coordinates, theta.detach())
    assert set(kept) <= tables


@pytest.mark.parametrize("implementation", ["native", "reference"])
def test_in_place_equals_functional_and_refuses_gradients(implementation):
    tensors = operands(SEED, torch.bfloat16)
    expected = ops.rope4d(*tensors, implementation=implementation)
    q, k = (x.clone() for x in tensors[:2])
    out = ops.rope4d_(q, k, *tensors[2:], implementation=implementation)
    assert out[0] is q
    assert out[1] is k
    assert torch.equal(q, expected[0])
    assert torch.equal(k, expected[1])
    with pytest.raises(RuntimeError, match=r"no gradient; use rope4d"):
        ops.rope4d_(q.requires_grad_(), k, *tensors[2:])


def test_rows_that_are_not_dense_are_rotated_all_the_same():
    tensors = operands(SEED)
    sparse = [torch.stack((x, x), -1)[..., 0] for x in tensors[:2]]
    assert sparse[0].stride(-1) == 2
    assert all(torch.equal(a, b) for a, b in zip(rope4d(*sparse, *tensors[2:]), rope4d(*tensors), strict=True))
    ops.rope4d_(*sparse, *tensors[2:])
    assert torch.equal(sparse[0], rope4d(*tensors)[0])


def test_a_gradient_that_the_kernel_lacks_comes_from_the_reference_or_is_refused():
    tensors = operands(SEED)
    tensors[4].requires_grad_()
    with pytest.raises(RuntimeError, match="'native' cannot do this: it gives cos, sin and coordinates no gradient"):
        rope4d(*tensors)
    grad = torch.autograd.grad(ops.rope4d(*tensors)[0].square().mul(tensors[0]).sum(), tensors[4])[0]
    truth = torch.autograd.grad(reference.rope4d(*tensors)[0].square().mul(tensors[0]).sum(), tensors[4])[0]
    torch.testing.assert_close(grad, truth)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (1, lambda k: k[:, :, 1:], r"k must agree with q"),
        (1, lambda k: k.double(), r"k must agree with q.*Double"),
        (5, lambda theta: theta[:2], r"theta is \(3, d\)"),
        (5, lambda theta: theta.repeat(1, 2), r"theta is \(3, d\) with 0 < 2 d <= D = 64"),
        (0, lambda q: q[0], r"q and k are \(b, heads, s, D\)"),
    ],
)
def test_operands_that_do_not_agree_are_named(index, change, message):
    tensors = operands(SEED)
    tensors[index] = change(tensors[index])
    with pytest.raises(RuntimeError, match=message):
        rope4d(*tensors)


def test_a_demanded_implementation_that_is_missing_raises_with_the_mend():
    tensors = operands(SEED)
    with pytest.raises(
        RuntimeError, match=r"'triton' is not there for cpu tensors: .*CUDA device.*'auto' takes what is there"
    ):
        ops.rope4d(*tensors, implementation="triton")
    with pytest.raises(ValueError, match=r"'fast': allowed are auto, native, triton, reference"):
        ops.rope4d(*tensors, implementation="fast")


def test_a_device_that_computes_wrongly_is_found_out(monkeypatch):
    """The first use on a device runs a small case against the reference."""
    monkeypatch.setattr(implementations, "VERIFIED", {})
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert implementations.missing("native", "cpu") == ""
    implementations.VERIFIED.clear()
    turn = reference.turn
    monkeypatch.setattr(reference, "turn", lambda cos, sin, *rest: turn(cos, -sin, *rest))
    assert "off by" in implementations.missing("native", "cpu")


LEAN = """
import sys
sys.modules["av"] = sys.modules["lmms_eval"] = None  # importing them fails
from dynimg_plugin import DynImgConfig, apply_dynimg, describe_dynimg, ops
from dynimg_plugin.families import family_module
from dynimg_plugin.tiny import build_tiny
model = apply_dynimg(build_tiny("llava")[0], implementation="native")
print(describe_dynimg(model))
"""


def test_a_machine_without_pyav_and_lmms_eval_has_the_operator_the_wrapper_and_patching():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "native (C++)" in done.stdout
