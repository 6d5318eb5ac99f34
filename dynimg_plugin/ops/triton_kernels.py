"""The operator in Triton, for CUDA machines without nvcc. Same arithmetic, same order of sums as far as theta goes.

One program takes TOKENS tokens of a batch row with all their heads, BLOCK_H heads at a time. Theta's gradient gathers
in registers over the program's tokens; the programs' parts are added by one sum: no atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynimg_plugin.ops.library import TRITON

TOKENS = 4


@triton.jit
def _tables(cos, sin, coordinates, theta, i, j, live, p, d, ts, cs, DOUBLE: tl.constexpr):
    """cos and sin of base + learnable angle for d pairs of one token, and the token's t, h, w."""
    mask = (p < d) & live
    base_cos = tl.load(cos + i * ts[0] + j * ts[1] + p * ts[2], mask, 0.0)
    base_sin = tl.load(sin + i * ts[0] + j * ts[1] + p * ts[2], mask, 0.0)
    place = coordinates + i * cs[0] + j * cs[1]
    t, h, w = tl.load(place, live, 0.0), tl.load(place + 1, live, 0.0), tl.load(place + 2, live, 0.0)
    angle = t.to(tl.float64) * tl.load(theta + p, p < d, 0.0).to(tl.float64)
    angle += h.to(tl.float64) * tl.load(theta + d + p, p < d, 0.0).to(tl.float64)
    angle += w.to(tl.float64) * tl.load(theta + 2 * d + p, p < d, 0.0).to(tl.float64)
    turns = angle * 0.15915494309189533577  # reduced before it is rounded: exact at any position
    rest = (turns - tl.floor(turns + 0.5)) * 6.28318530717958647693
    if not DOUBLE:
        rest = rest.to(tl.float32)
    turn_cos, turn_sin = tl.cos(rest), tl.sin(rest)
    is_text = (t == 0) & (h == 0) & (w == 0)
    turn_cos, turn_sin = tl.where(is_text, 1.0, turn_cos), tl.where(is_text, 0.0, turn_sin)
    return base_cos * turn_cos - base_sin * turn_sin, base_sin * turn_cos + base_cos * turn_sin, t, h, w


@triton.jit
def _rounded(x, like: tl.constexpr, EAGER: tl.constexpr):
    if EAGER:
        return x.to(like).to(x.dtype)
    return x


@triton.jit
def _offsets(p, d, INTERLEAVED: tl.constexpr):
    if INTERLEAVED:
        return 2 * p, 2 * p + 1
    return p, p + d


@triton.jit
def _rotate(x, y, xs, ys, i, j, live, cos, sin, p, d, dim, HEADS: tl.constexpr, BLOCK_H: tl.constexpr,
            BLOCK_REST: tl.constexpr, INTERLEAVED: tl.constexpr, EAGER: tl.constexpr):  # fmt: skip
    one, two = _offsets(p, d, INTERLEAVED)
    for start in range(0, HEADS, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)[:, None].to(tl.int64)
        mask = (h < HEADS) & (p[None, :] < d) & live
        source, target = x + i * xs[0] + h * xs[1] + j * xs[2], y + i * ys[0] + h * ys[1] + j * ys[2]
        a = tl.load(source + one[None, :], mask, 0.0)
        b = tl.load(source + two[None, :], mask, 0.0)
        dtype: tl.constexpr = a.dtype
        a, b = a.to(cos.dtype), b.to(cos.dtype)
        c, s = _rounded(cos, dtype, EAGER)[None, :], _rounded(sin, dtype, EAGER)[None, :]
        first = _rounded(a * c, dtype, EAGER) - _rounded(b * s, dtype, EAGER)
        second = _rounded(b * c, dtype, EAGER) + _rounded(a * s, dtype, EAGER)
        tl.store(target + one[None, :], first.to(dtype), mask)
        tl.store(target + two[None, :], second.to(dtype), mask)
        if BLOCK_REST:
            rest = 2 * d + tl.arange(0, BLOCK_REST)[None, :]
            kept = (h < HEADS) & (rest < dim) & live
            tl.store(target + rest, tl.load(source + rest, kept, 0.0), kept)


@triton.jit
def _forward(q, k, q_out, k_out, cos, sin, coordinates, theta, qs, ks, qos, kos, ts, cs, blocks,
             tokens, d, dim, HEADS_Q: tl.constexpr, HEADS_K: tl.constexpr, TOKENS: tl.constexpr, BLOCK_P: tl.constexpr,
             BLOCK_H: tl.constexpr, BLOCK_REST: tl.constexpr, INTERLEAVED: tl.constexpr, EAGER: tl.constexpr,
             DOUBLE: tl.constexpr):  # fmt: skip
    i, block = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0).to(tl.int64) % blocks
    p = tl.arange(0, BLOCK_P)
    for step in range(TOKENS):
        j = block * TOKENS + step
        live = j < tokens
        c, s, _, _, _ = _tables(cos, sin, coordinates, theta, i, j, live, p, d, ts, cs, DOUBLE)
        _rotate(q, q_out, qs, qos, i, j, live, c, s, p, d, dim, HEADS_Q, BLOCK_H, BLOCK_REST, INTERLEAVED, EAGER)
        _rotate(k, k_out, ks, kos, i, j, live, c, s, p, d, dim, HEADS_K, BLOCK_H, BLOCK_REST, INTERLEAVED, EAGER)


@triton.jit
def _angle_gradient(g, y, gs, ys, i, j, live, p, d, like, HEADS: tl.constexpr, BLOCK_H: tl.constexpr,
                    INTERLEAVED: tl.constexpr):  # fmt: skip
    """Sum over heads of d loss / d angle, from the roped outputs y: rotating on moves y by (-y2, y1)."""
    one, two = _offsets(p, d, INTERLEAVED)
    total = tl.zeros_like(like)
    for start in range(0, HEADS, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)[:, None].to(tl.int64)
        mask = (h < HEADS) & (p[None, :] < d) & live
        grad, out = g + i * gs[0] + h * gs[1] + j * gs[2], y + i * ys[0] + h * ys[1] + j * ys[2]
        g1 = tl.load(grad + one[None, :], mask, 0.0).to(like.dtype)
        g2 = tl.load(grad + two[None, :], mask, 0.0).to(like.dtype)
        y1 = tl.load(out + one[None, :], mask, 0.0).to(like.dtype)
        y2 = tl.load(out + two[None, :], mask, 0.0).to(like.dtype)
        total += tl.sum(g2 * y1 - g1 * y2, 0)
    return total


@triton.jit
def _backward(gq, gk, yq, yk, dq, dk, parts, cos, sin, coordinates, theta, gqs, gks, yqs, yks, dqs, dks, ts, cs,
              blocks, tokens, d, dim, HEADS_Q: tl.constexpr, HEADS_K: tl.constexpr, TOKENS: tl.constexpr,
              BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_REST: tl.constexpr, INTERLEAVED: tl.constexpr,
              THETA: tl.constexpr, DOUBLE: tl.constexpr):  # fmt: skip
    i, block = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0).to(tl.int64) % blocks
    p = tl.arange(0, BLOCK_P)
    part = parts + (i * blocks + block) * 3 * d + p
    kind: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    sum_t, sum_h, sum_w = tl.zeros((BLOCK_P,), kind), tl.zeros((BLOCK_P,), kind), tl.zeros((BLOCK_P,), kind)
    for step in range(TOKENS):
        j = block * TOKENS + step
        live = j < tokens
        c, s, t, h, w = _tables(cos, sin, coordinates, theta, i, j, live, p, d, ts, cs, DOUBLE)
        _rotate(gq, dq, gqs, dqs, i, j, live, c, -s, p, d, dim, HEADS_Q, BLOCK_H, BLOCK_REST, INTERLEAVED, False)
        _rotate(gk, dk, gks, dks, i, j, live, c, -s, p, d, dim, HEADS_K, BLOCK_H, BLOCK_REST, INTERLEAVED, False)
        if THETA:  # noqa: SIM102 (known while compiling; the other is not)
            if (t != 0) | (h != 0) | (w != 0):  # the outputs of text tokens are never read
                total = _angle_gradient(gq, yq, gqs, yqs, i, j, live, p, d, c, HEADS_Q, BLOCK_H, INTERLEAVED)
                total += _angle_gradient(gk, yk, gks, yks, i, j, live, p, d, c, HEADS_K, BLOCK_H, INTERLEAVED)
                sum_t += t * total
                sum_h += h * total
                sum_w += w * total
    if THETA:
        tl.store(part, sum_t, p < d)
        tl.store(part + d, sum_h, p < d)
        tl.store(part + 2 * d, sum_w, p < d)


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous()


def _strides(x: Tensor) -> tuple[int, ...]:
    return x.stride()[:3]


def _launch(kernel: Any, q: Tensor, theta: Tensor, *arguments: Any, **options: Any) -> None:
    batch, heads, tokens, dim = q.shape
    if batch * tokens == 0:
        return
    d, blocks = theta.shape[1], triton.cdiv(tokens, TOKENS)
    sizes = {
        "TOKENS": TOKENS,
        "BLOCK_P": triton.next_power_of_2(d),
        "BLOCK_H": min(triton.next_power_of_2(heads), max(1, 2048 // triton.next_power_of_2(d))),
        "BLOCK_REST": triton.next_power_of_2(dim - 2 * d) if dim > 2 * d else 0,
        "DOUBLE": q.dtype == torch.float64,
        "enable_fp_fusion": False,  # a * c - b * s rounds its products as eager kernels do
    }
    with torch.cuda.device_of(q):  # Triton launches on the current device
        kernel[(blocks * batch,)](*arguments, blocks, tokens, d, dim, **sizes, **options)


def _expanded(q: Tensor, cos: Tensor, sin: Tensor, coordinates: Tensor, theta: Tensor) -> tuple[Tensor, ...]:
    b, s, d = q.shape[0], q.shape[2], theta.shape[1]
    return cos.expand(b, s, d), sin.expand(b, s, d), _dense(coordinates).expand(b, s, 3), theta.contiguous()


def _run(q: Tensor, k: Tensor, q_out: Tensor, k_out: Tensor, tables: Any, interleaved: bool, match_eager: bool) -> None:
    cos, sin, coordinates, theta = _expanded(q, *tables)
    tensors = (q, k, q_out, k_out)
    _launch(
        _forward,
        q,
        theta,
        *tensors,
        cos,
        sin,
        coordinates,
        theta,
        *(_strides(x) for x in tensors),
        cos.stride(),
        coordinates.stride()[:2],
        HEADS_Q=q.shape[1],
        HEADS_K=k.shape[1],
        INTERLEAVED=interleaved,
        EAGER=match_eager,
    )


@torch.library.impl(f"{TRITON}::rope4d", ("cuda", "cpu"))
def rope4d(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *tables, interleaved, match_eager = rest
    q, k = _dense(q), _dense(k)
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    _run(q, k, q_out, k_out, tables, interleaved, match_eager)
    return q_out, k_out


@torch.library.impl(f"{TRITON}::rope4d_", ("cuda", "cpu"))
def rope4d_(q: Tensor, k: Tensor, *rest: Any) -> None:
    *tables, interleaved, match_eager = rest
    dense_q, dense_k = _dense(q), _dense(k)
    _run(dense_q, dense_k, dense_q, dense_k, tables, interleaved, match_eager)
    for x, done in ((q, dense_q), (k, dense_k)):
        if done is not x:
            x.copy_(done)


@torch.library.impl(f"{TRITON}::rope4d_backward", ("cuda", "cpu"))
def rope4d_backward(
    grad_q: Tensor, grad_k: Tensor, q_out: Tensor, k_out: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *tables, interleaved, need_theta = rest
    grad_q, grad_k, q_out, k_out = (_dense(x) for x in (grad_q, grad_k, q_out, k_out))
    dq, dk = torch.empty_like(grad_q), torch.empty_like(grad_k)
    cos, sin, coordinates, theta = _expanded(grad_q, *tables)
    blocks = grad_q.shape[0] * triton.cdiv(grad_q.shape[2], TOKENS) if need_theta else 0
    parts = theta.new_empty(blocks, *theta.shape)
    tensors = (grad_q, grad_k, q_out, k_out, dq, dk)
    _launch(
        _backward,
        grad_q,
        theta,
        *tensors,
        parts,
        cos,
        sin,
        coordinates,
        theta,
        *(_strides(x) for x in tensors),
        cos.stride(),
        coordinates.stride()[:2],
        HEADS_Q=grad_q.shape[1],
        HEADS_K=grad_k.shape[1],
        INTERLEAVED=interleaved,
        THETA=need_theta,
    )
    return dq, dk, parts.sum(0)
