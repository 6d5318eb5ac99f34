"""What rope.py and rope_gpu.py compare: one layer's q and k through plain eager RoPE, eager 4D RoPE, and the operator.

Needs torch and the source tree only. Heads of Qwen2.5-7B: 28 + 4 of 128. 576 tokens are visual, the others text.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from dynimg_plugin import ops
from dynimg_plugin.ops import reference

HEADS, KV_HEADS, DIM, VISUAL = 28, 4, 128, 576
LAYERS = 4  # that share theta and the base's tables, as in a model; figures are per layer
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-3}


@dataclass
class Layer:
    """Inputs of a layer, the gradients of its outputs, and the tables."""

    q: Tensor
    k: Tensor
    grads: tuple[Tensor, Tensor]
    cos: Tensor
    sin: Tensor
    coordinates: Tensor
    theta: Tensor

    @property
    def bytes(self) -> int:
        """q and k once."""
        return (self.q.numel() + self.k.numel()) * self.q.element_size()


def draw(tokens: int, dtype: torch.dtype, seed: int, device: str = "cpu") -> Layer:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def packed(heads: int) -> Tensor:  # (b, s, heads, D) in memory, as projections leave it
        return normal(1, tokens, heads, DIM).to(device, dtype).transpose(1, 2)

    angle = torch.arange(tokens)[None, :, None] / 1e6 ** (torch.arange(DIM // 2) / (DIM // 2))
    coordinates = torch.zeros(1, tokens, 3)
    visual = slice(16, 16 + VISUAL) if tokens >= VISUAL + 16 else slice(0, tokens)
    coordinates[:, visual] = normal(*coordinates[:, visual].shape).mul(6).round()
    tables = [x.to(device) for x in (angle.cos(), angle.sin(), coordinates, normal(3, DIM // 2) * 0.1)]
    return Layer(packed(HEADS), packed(KV_HEADS), (packed(HEADS), packed(KV_HEADS)), *tables)


def rotate_half(x: Tensor) -> Tensor:
    one, two = x.chunk(2, -1)
    return torch.cat((-two, one), -1)


def eager_apply(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The formula that attention layers of transformers run; a test holds it to theirs, bit for bit."""
    cos, sin = cos[:, None], sin[:, None]
    return q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin


def eager(
    x: Layer, theta: Tensor, apply: Callable[..., tuple[Tensor, Tensor]] = eager_apply, layers: int = LAYERS
) -> list[Tensor]:
    """The wrapper's PyTorch path: turned tables once, then every layer."""
    spread = reference.SPREAD["half"]
    tables = reference.turn(spread(x.cos), spread(x.sin), x.coordinates, theta, "half")
    cos, sin = (table.to(x.q.dtype) for table in tables)
    return [out for _ in range(layers) for out in apply(x.q, x.k, cos, sin)]


def operator(
    x: Layer, theta: Tensor, implementation: str = "native", match_eager: bool = False, layers: int = LAYERS
) -> list[Tensor]:
    tables = (x.cos, x.sin, x.coordinates, theta)
    options = {"implementation": implementation, "match_eager": match_eager}
    return [out for _ in range(layers) for out in ops.rope4d(x.q, x.k, *tables, **options)]


def train(arm: Callable[[Layer, Tensor], list[Tensor]], x: Layer) -> list[Tensor]:
    """Forward and backward with learnable theta: the last layer's outputs, then dq, dk, dtheta."""
    leaves = [t.detach().requires_grad_() for t in (x.q, x.k, x.theta)]
    outputs = arm(Layer(leaves[0], leaves[1], x.grads, x.cos, x.sin, x.coordinates, x.theta), leaves[2])
    gradients = torch.autograd.grad(outputs, leaves, x.grads * LAYERS)
    return [*(out.detach() for out in outputs[-2:]), *gradients]


def errors(arm: Callable[[Layer, Tensor], list[Tensor]], x: Layer) -> dict[str, float]:
    """Relative norms against float64, of outputs and gradients."""
    doubled = Layer(*(t.double() if isinstance(t, Tensor) else tuple(g.double() for g in t) for t in vars(x).values()))

    def truth(y: Layer, theta: Tensor) -> list[Tensor]:
        one = reference.rope4d(y.q, y.k, y.cos, y.sin, y.coordinates, theta)
        return [out for _ in range(LAYERS) for out in one]

    names = ("q", "k", "dq", "dk", "dtheta")
    pairs = zip(names, train(arm, x), train(truth, doubled), strict=True)
    return {name: ((ours.double() - true).norm() / true.norm()).item() for name, ours, true in pairs}


def kept(arm: Callable[..., list[Tensor]], x: Layer) -> int:
    """Bytes that one layer keeps for the backward pass beyond its outputs, which attention keeps, and the tables."""
    found: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    leaves = [t.detach().requires_grad_() for t in (x.q, x.k, x.theta)]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        outputs = arm(Layer(leaves[0], leaves[1], x.grads, x.cos, x.sin, x.coordinates, x.theta), leaves[2], layers=1)
    own = {t.untyped_storage().data_ptr() for t in (*outputs, x.cos, x.sin, x.coordinates, x.theta)}
    return sum(size for at, size in found.items() if at not in own)
