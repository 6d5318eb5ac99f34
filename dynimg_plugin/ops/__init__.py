"""The 4D RoPE operator: native (C++, CUDA), Triton, and the PyTorch reference that defines it."""

from __future__ import annotations

import torch
from torch import Tensor

from dynimg_plugin.ops import library, reference
from dynimg_plugin.ops.implementations import NAMES, Implementation, choose, describe, missing, require

__all__ = ["NAMES", "Implementation", "choose", "describe", "missing", "require", "rope4d", "rope4d_"]

MAX_CUDA_PAIRS = 256  # csrc/rope4d_block.h: what fits into shared memory

for namespace in NAMES.values():
    library.define(namespace)


def rope4d(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    coordinates: Tensor,
    theta: Tensor,
    *,
    interleaved: bool = False,
    match_eager: bool = False,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Rotate q and k by the base's angle plus the learnable one, t * theta_t + h * theta_h + w * theta_w.

    Differentiable in q, k and theta, once. Kept for the backward pass are the two outputs (attention keeps q's anyway,
    and k's unless it repeats them for its heads) and the tables, which layers share; theta's gradient is the same bits
    every time (our choice; the paper has no kernel).

    Args:
        q: (b, heads, s, D) in fp64, fp32, bf16 or fp16; any strides over b, heads and s.
        k: (b, key heads, s, D).
        cos, sin: (b or 1, s, d) with 2 d <= D, of the base rotary embedding; D - 2 d numbers pass through unturned.
        coordinates: (b or 1, s, 3), the token's t, h, w; all zero for text.
        theta: (3, d).
        interleaved: pairs are (0, 1), (2, 3), ... rather than (0, d), (1, d + 1), ...
        match_eager: round every intermediate result to q's dtype as the attention layers of transformers do, so that
            bf16 models keep their bits on day 0; without it the forward pass is about a third more exact in bf16.
        implementation: "auto", "native", "triton" or "reference"; one that is asked for and missing raises.

    Returns:
        q and k rotated, in their dtype.

    Raises:
        RuntimeError: the implementation is missing, with the reason and what mends it; or shapes that do not agree.
    """
    name = _serving(q, cos, sin, coordinates, theta, implementation)
    tables = _tables(q, cos, sin, coordinates, theta)
    if name == "reference":
        return reference.rope4d(q, k, *tables, interleaved, match_eager)
    return getattr(torch.ops, NAMES[name]).rope4d(q, k, *tables, interleaved, match_eager)


def rope4d_(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    coordinates: Tensor,
    theta: Tensor,
    *,
    interleaved: bool = False,
    match_eager: bool = False,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """The same in place, for inference: q and k are overwritten and returned. RuntimeError if one needs a gradient."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, theta)):
        raise RuntimeError("rope4d_ overwrites its inputs and has no gradient; use rope4d, or torch.no_grad()")
    name = _serving(q, cos, sin, coordinates, theta, implementation)
    tables = _tables(q, cos, sin, coordinates, theta)
    if name == "reference":
        rotated = reference.rope4d(q, k, *tables, interleaved, match_eager)
        return q.copy_(rotated[0]), k.copy_(rotated[1])
    getattr(torch.ops, NAMES[name]).rope4d_(q, k, *tables, interleaved, match_eager)
    for x in (q, k):
        if not x.is_inference():
            torch.autograd.graph.increment_version(x)  # a graph that kept the old values must notice
    return q, k


def _serving(q: Tensor, cos: Tensor, sin: Tensor, coordinates: Tensor, theta: Tensor, implementation: str) -> str:
    """What "auto" leaves to the reference, and a demanded kernel refuses: gradients and widths that it has not."""
    name = choose(implementation, q.device)
    limits = {
        "it gives cos, sin and coordinates no gradient": torch.is_grad_enabled()
        and any(x.requires_grad for x in (cos, sin, coordinates)),
        f"on CUDA it takes up to {MAX_CUDA_PAIRS} pairs, here are {theta.shape[-1]}": name == "native"
        and q.device.type == "cuda"
        and theta.shape[-1] > MAX_CUDA_PAIRS,
    }
    beyond = [reason for reason, holds in limits.items() if holds]
    if beyond and name == implementation != "reference":
        raise RuntimeError(f"implementation={name!r} cannot do this: {'; '.join(beyond)}; use 'auto' or 'reference'")
    return "reference" if beyond else name


def _tables(q: Tensor, *tables: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tables in the dtype in which the kernels compute."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    cos, sin, coordinates, theta = (table.to(q.device, dtype) for table in tables)
    return cos, sin, coordinates, theta
