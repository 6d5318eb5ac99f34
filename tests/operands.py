"""Operands for the 4D RoPE operator, drawn from a seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynimg_plugin.ops import reference


def operands(
    seed: int,
    dtype: torch.dtype = torch.float32,
    *,
    dim: int = 64,
    rotary: int | None = None,
    batch: int = 2,
    heads: int = 6,
    kv_heads: int = 2,
    tokens: int = 77,
    table_batch: int = 1,
    position: int = 1000,
    packed: bool = True,
) -> list[Tensor]:
    """q, k, cos, sin, coordinates, theta; the first quarter of the tokens is text.

    `packed`: q and k lie in memory as (b, s, heads, D), as projections leave them.
    """
    generator = torch.Generator().manual_seed(seed)
    d, table = (rotary or dim) // 2, torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (normal(batch, tokens, h, dim).to(dtype).transpose(1, 2) for h in (heads, kv_heads))
    angle = torch.rand(table_batch, tokens, d, generator=generator, dtype=torch.float64) * position
    coordinates = torch.randint(-12, 13, (batch, tokens, 3), generator=generator).to(table)
    coordinates[:, : tokens // 4] = 0
    tensors = [q, k, angle.cos().to(table), angle.sin().to(table), coordinates, normal(3, d).to(table)]
    return tensors if packed else [tensors[0].contiguous(), tensors[1].contiguous(), *tensors[2:]]


def exact(tensors: list[Tensor], interleaved: bool = False) -> list[Tensor]:
    """Outputs and the gradients of q, k, theta in float64, for the gradient that `weights` gives."""
    return outputs_and_gradients(reference.rope4d, [x.double() for x in tensors], interleaved)


def outputs_and_gradients(rope4d: Any, tensors: list[Tensor], *options: Any) -> list[Tensor]:
    """[q out, k out, dq, dk, dtheta] of `rope4d` for a fixed incoming gradient."""
    q, k, cos, sin, coordinates, theta = tensors
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, theta)]
    outputs = rope4d(leaves[0], leaves[1], cos, sin, coordinates, leaves[2], *options)
    gradients = torch.autograd.grad(outputs, leaves, [x.to(q.device, q.dtype) for x in _incoming(outputs)])
    return [*(x.detach() for x in outputs), *gradients]


def theta_scale(tensors: list[Tensor], interleaved: bool) -> float:
    """Norm of what theta's gradient would be if none of its summands cancelled: the measure of its error."""
    *_, coordinates, theta = (x.double() for x in tensors)
    q_out, k_out, *_ = exact(tensors, interleaved)
    total = torch.zeros_like(theta)
    for out, incoming in zip((q_out, k_out), _incoming((q_out, k_out)), strict=True):
        rotary = 2 * theta.shape[1]
        pairs = [x[..., :rotary].double().abs() for x in (out, incoming)]
        split = (lambda x: (x[..., 0::2], x[..., 1::2])) if interleaved else (lambda x: x.chunk(2, -1))
        (y1, y2), (g1, g2) = (split(x) for x in pairs)
        total += torch.einsum("bsa,bhsp->ap", coordinates.abs(), g2 * y1 + g1 * y2)
    return total.norm().item()


def _incoming(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(x.shape, generator=generator, dtype=torch.float64).bfloat16() for x in outputs]


def error(ours: Tensor, truth: Tensor) -> float:
    """Norm of the difference, relative."""
    truth = truth.double()
    return ((ours.double() - truth).norm() / truth.norm().clamp_min(1e-300)).item()
