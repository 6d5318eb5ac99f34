"""The operators' schemas, and what PyTorch must know of them: shapes without data, and the gradients.

`dynimg::` is implemented in C++ and CUDA (csrc/), `dynimg_triton::` in Triton; both have the same three operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NATIVE, TRITON = "dynimg", "dynimg_triton"
TABLES = "Tensor cos, Tensor sin, Tensor coordinates, Tensor theta, bool interleaved"
SCHEMAS = {
    "rope4d": f"(Tensor q, Tensor k, {TABLES}, bool match_eager) -> (Tensor, Tensor)",
    "rope4d_": f"(Tensor(a!) q, Tensor(b!) k, {TABLES}, bool match_eager) -> ()",
    "rope4d_backward": (
        f"(Tensor grad_q, Tensor grad_k, Tensor q_out, Tensor k_out, {TABLES}, bool need_theta)"
        " -> (Tensor, Tensor, Tensor)"
    ),
}


def like(x: Tensor) -> Tensor:
    """Shape and strides of an output: the operators read any strides but write dense rows."""
    out = torch.empty_like(x if x.stride(-1) == 1 else x.contiguous())
    return out if out.stride(-1) == 1 else torch.empty_like(x, memory_format=torch.contiguous_format)


def define(namespace: str) -> None:
    """Declare the three operators of a namespace, with fake implementations and autograd."""
    for name, schema in SCHEMAS.items():
        torch.library.define(f"{namespace}::{name}", schema, tags=torch.Tag.pt2_compliant_tag)
    operators = getattr(torch.ops, namespace)

    @torch.library.register_fake(f"{namespace}::rope4d")
    def _(q: Tensor, k: Tensor, *tables: Any) -> tuple[Tensor, Tensor]:
        return like(q), like(k)

    @torch.library.register_fake(f"{namespace}::rope4d_")
    def _(q: Tensor, k: Tensor, *tables: Any) -> None:
        return None

    @torch.library.register_fake(f"{namespace}::rope4d_backward")
    def _(grad_q: Tensor, grad_k: Tensor, q_out: Tensor, k_out: Tensor, *tables: Any) -> tuple[Tensor, ...]:
        return like(grad_q), like(grad_k), torch.empty_like(tables[3])

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Attention keeps the roped q and k anyway; theta's gradient needs nothing else of them."""
        *_, cos, sin, coordinates, theta, ctx.interleaved, _ = inputs
        ctx.need_theta = ctx.needs_input_grad[5]
        ctx.save_for_backward(cos, sin, coordinates, theta, *(output if ctx.need_theta else ()))

    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor | None, ...]:
        *tables, q_out, k_out = ctx.saved_tensors if ctx.need_theta else (*ctx.saved_tensors, grad_q, grad_k)
        dq, dk, dtheta = operators.rope4d_backward(
            grad_q, grad_k, q_out, k_out, *tables, ctx.interleaved, ctx.need_theta
        )
        return dq, dk, None, None, None, dtheta if ctx.need_theta else None, None, None

    def no_second(ctx: Any, *grads: Any) -> None:
        raise RuntimeError("rope4d has no second derivative; use implementation='reference'")

    torch.library.register_autograd(f"{namespace}::rope4d", backward, setup_context=save)
    torch.library.register_autograd(f"{namespace}::rope4d_backward", no_second)
