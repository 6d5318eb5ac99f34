"""4D RoPE in plain PyTorch: the definition that every other implementation is tested against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# How d angles are laid out over the rotary dimension:
SPREAD: dict[str, Callable[[Tensor], Tensor]] = {
    "half": lambda angle: torch.cat((angle, angle), -1),  # [a0 a1 a2 a0 a1 a2]  Llama, Qwen, ...
    "interleaved": lambda angle: angle.repeat_interleave(2, -1),  # [a0 a0 a1 a1 a2 a2]  GLM, Cohere
    "single": lambda angle: angle,  # [a0 a1 a2]
}


def turn(cos: Tensor, sin: Tensor, coordinates: Tensor, theta: Tensor, layout: str = "single") -> tuple[Tensor, Tensor]:
    """Rotate (cos, sin) on by the learnable angle t * theta_t + h * theta_h + w * theta_w (paper, 4D RoPE).

    Sums of products rather than a matmul: autocast would run a matmul in bf16.

    Args:
        cos, sin: (b or 1, s, D) of the base rotary embedding.
        coordinates: (b or 1, s, 3), the token's t, h, w; all zero for text.
        theta: (3, d).
        layout: how the d angles are laid out over D, a key of SPREAD.
    """
    t, h, w = coordinates.split(1, -1)
    theta_t, theta_h, theta_w = theta.unbind(-2)
    angle = SPREAD[layout](t * theta_t + h * theta_h + w * theta_w)
    turn_cos, turn_sin = angle.cos(), angle.sin()
    return cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin


def apply(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the first 2 d of the D numbers of x (b, heads, s, D) by the angles of cos and sin (b, s, d)."""
    cos, sin = cos[:, None], sin[:, None]
    rotary, rest = x.split((2 * cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]), -1)
    one, two = (rotary[..., 0::2], rotary[..., 1::2]) if interleaved else rotary.chunk(2, -1)
    turned = (one * cos - two * sin, two * cos + one * sin)
    rotary = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat((rotary, rest), -1)


def rope4d(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    coordinates: Tensor,
    theta: Tensor,
    interleaved: bool = False,
    match_eager: bool = False,
) -> tuple[Tensor, Tensor]:
    """See dynimg_plugin.ops.rope4d. Differentiable in everything, twice; computes in fp32 or, for fp64 q, in fp64.

    `match_eager` computes in q's dtype instead, as the attention layers of transformers do.
    """
    cos, sin = turn(cos, sin, coordinates, theta)
    dtype = q.dtype if match_eager else cos.dtype
    q_out, k_out = (apply(x.to(dtype), cos.to(dtype), sin.to(dtype), interleaved).to(x.dtype) for x in (q, k))
    return q_out, k_out
