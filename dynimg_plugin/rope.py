"""The rotary wrapper: whatever rotary embedding a language model has, plus learnable (t, h, w) angles.

    cos, sin of the base:   angle  s * theta_s                                  (default, yarn, M-RoPE, partial, ...)
    this wrapper:           angle  s * theta_s + t * theta_t + h * theta_h + w * theta_w

The base is composed with, not replaced: its cos and sin are rotated on by the learnable angle, so theta = 0 returns
the base's own bits, and every kind of base works that returns a (cos, sin) pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

AXES = ("t", "h", "w")


class LayerAngles(NamedTuple):
    """What the wrapper hands to the decoder layers when every layer has its own theta: (layers, d) per axis."""

    cos: Tensor
    sin: Tensor
    coordinates: Tensor
    theta_t: Tensor
    theta_h: Tensor
    theta_w: Tensor

    def of_layer(self, index: int, layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(cos, sin) of decoder layer `index`."""
        thetas = (self.theta_t[index], self.theta_h[index], self.theta_w[index])
        return rotate(self.cos, self.sin, self.coordinates, thetas, layout, dtype)


class DynImgRotaryEmbedding(nn.Module):
    """Wraps a rotary embedding; holds theta, fp32 whatever the model's dtype, zero at the start (paper, 4D RoPE).

    Args:
        base: the language model's own rotary module; kept as `.base`.
        num_layers: None for one theta shared by all layers (our choice), else one row per decoder layer.

    Attributes:
        theta_t, theta_h, theta_w: (d,) or (num_layers, d), d = rotary_dim / 2 frequencies.
        coordinates: (b or 1, s, 3) for the forward pass in flight, or None.

    Raises:
        ValueError: when the base returns no real (cos, sin) pair, e.g. complex rotary embeddings.
    """

    def __init__(self, base: nn.Module, num_layers: int | None = None) -> None:
        super().__init__()
        self.layout, self.num_frequencies = probe(base)
        self.base = base
        self.num_layers = num_layers
        device = next((buffer.device for buffer in base.buffers()), None)
        shape = (self.num_frequencies,) if num_layers is None else (num_layers, self.num_frequencies)
        for axis in AXES:
            self.register_parameter(
                f"theta_{axis}", nn.Parameter(torch.zeros(shape, device=device, dtype=torch.float32))
            )
        self.coordinates: Tensor | None = None

    def __getattr__(self, name: str) -> Any:  # inv_freq, rope_type, attention_scaling, config: the base's
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DynImgRotaryEmbedding:
        exact = [theta.data for theta in self.thetas]
        super()._apply(fn, recurse)
        for theta, before in zip(self.thetas, exact, strict=True):
            if theta.dtype != torch.float32:  # .to(bfloat16): a bf16 theta is off by up to 0.26 rad at position 575
                theta.data = before.to(theta.device)
        return self

    @property
    def thetas(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        return self.theta_t, self.theta_h, self.theta_w

    def extra_repr(self) -> str:
        return f"frequencies={self.num_frequencies}, layout={self.layout}, num_layers={self.num_layers}"

    def forward(
        self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor] | LayerAngles:
        """(cos, sin) in the dtype of `x`; with per-layer theta a LayerAngles in fp32 that the layers finish."""
        coordinates = self.coordinates
        if coordinates is None:
            if not (torch.is_grad_enabled() and any(theta.requires_grad for theta in self.thetas)):
                return self.base(x, position_ids, *args, **kwargs)
            # Text only: the same values, but theta stays in the graph, or data-parallel ranks wait for its gradient.
            coordinates = x.new_zeros(1, x.shape[1], 3)
        exact = torch.empty(0, dtype=torch.float32, device=x.device)  # the base reads only its dtype and device
        cos, sin = self.base(exact, position_ids, *args, **kwargs)
        coordinates = coordinates.to(cos.device, torch.float32)
        if self.num_layers is not None:
            return LayerAngles(cos, sin, coordinates, *self.thetas)
        return rotate(cos, sin, coordinates, self.thetas, self.layout, x.dtype)


def rotate(
    cos: Tensor, sin: Tensor, coordinates: Tensor, thetas: tuple[Tensor, ...], layout: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Rotate (cos, sin) on by coordinates * theta: (b, s, D) and (b, s, 3) -> (b, s, D), in fp32, then cast.

    Sums of products rather than a matmul: autocast would run a matmul in bf16.
    """
    t, h, w = coordinates.split(1, -1)
    theta_t, theta_h, theta_w = (theta.float() for theta in thetas)
    angle = SPREAD[layout](t * theta_t + h * theta_h + w * theta_w)
    turn_cos, turn_sin = angle.cos(), angle.sin()
    return (cos * turn_cos - sin * turn_sin).to(dtype), (sin * turn_cos + cos * turn_sin).to(dtype)


# How d angles are laid out over the rotary dimension:
SPREAD: dict[str, Callable[[Tensor], Tensor]] = {
    "half": lambda angle: torch.cat((angle, angle), -1),  # [a0 a1 a2 a0 a1 a2]  Llama, Qwen, ...
    "interleaved": lambda angle: angle.repeat_interleave(2, -1),  # [a0 a0 a1 a1 a2 a2]  GLM, Cohere
    "single": lambda angle: angle,  # [a0 a1 a2]
}


def probe(base: nn.Module) -> tuple[str, int]:
    """Find the layout and the number of frequencies of a rotary embedding by running it at position 1."""
    if isinstance(base, DynImgRotaryEmbedding):
        raise ValueError("this rotary embedding is wrapped already")
    sin = _sin_at_one(base).reshape(-1)
    half = sin.numel() // 2
    if torch.equal(sin[:half], sin[half:]):
        return "half", half
    if torch.equal(sin[0::2], sin[1::2]):
        return "interleaved", half
    return "single", sin.numel()


def _sin_at_one(base: nn.Module) -> Tensor:
    buffer = next(base.buffers(), torch.zeros(1))
    x, position = torch.zeros(1, device=buffer.device), torch.ones(1, 1, dtype=torch.long, device=buffer.device)
    layer_types = getattr(getattr(base, "config", None), "layer_types", None) or ()
    attempts = [(x, position), (x, position.expand(3, 1, 1)), *((x, position, kind) for kind in layer_types[:1])]
    failures = []
    for attempt in attempts:  # plain, M-RoPE (three position axes), one rotary per layer type
        try:
            out = base(*attempt)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            failures.append(f"{type(error).__name__}: {error}")
            continue
        if isinstance(out, tuple) and len(out) == 2 and out[0].is_floating_point():
            return out[1]
        failures.append(f"it returned {type(out).__name__}, not a real (cos, sin) pair")
    raise ValueError(
        f"{type(base).__name__} cannot be wrapped: {'; '.join(dict.fromkeys(failures))}. Supported are "
        "rotary embeddings that return (cos, sin); for this model use DynImgConfig(rope_4d=False)"
    )
