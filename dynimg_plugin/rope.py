"""The rotary wrapper: whatever rotary embedding a language model has, plus learnable (t, h, w) angles.

    cos, sin of the base:   angle  s * theta_s                                  (default, yarn, M-RoPE, partial, ...)
    this wrapper:           angle  s * theta_s + t * theta_t + h * theta_h + w * theta_w

The base is composed with, not replaced: its cos and sin are rotated on by the learnable angle, so theta = 0 returns
the base's own bits, and every kind of base works that returns a (cos, sin) pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dynimg_plugin.ops import Implementation, choose
from dynimg_plugin.ops.reference import turn

AXES = ("t", "h", "w")


class BaseTables:
    """cos and sin of the base, fp32, (b, s, d): one number per frequency.

    A plain class, as LearnableAngle is: FSDP casts the tensors of tuples and dataclasses to the model's dtype.
    """

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        self.cos, self.sin = cos, sin

    def to(self, *args: Any, **kwargs: Any) -> BaseTables:  # accelerate moves a layer's inputs with it
        return BaseTables(self.cos.to(*args, **kwargs), self.sin.to(*args, **kwargs))


class LearnableAngle:
    """What turns the base's angles on: (b or 1, s, 3) and theta (3, d), or (layers, 3, d) until a layer takes its row.

    All that a layer needs travels in these tensors: activation checkpointing runs a layer again after the coordinates
    have gone from the module.
    """

    def __init__(self, coordinates: Tensor, theta: Tensor, implementation: str, dtype: torch.dtype) -> None:
        self.coordinates, self.theta, self.implementation = coordinates, theta, implementation
        self.dtype = dtype  # in which the model's own cos and sin would come

    def of_layer(self, index: int) -> LearnableAngle:
        return LearnableAngle(self.coordinates, self.theta[index], self.implementation, self.dtype)

    def to(self, *args: Any, **kwargs: Any) -> LearnableAngle:
        coordinates, theta = self.coordinates.to(*args, **kwargs), self.theta.to(*args, **kwargs)
        return LearnableAngle(coordinates, theta, self.implementation, self.dtype)


class DynImgRotaryEmbedding(nn.Module):
    """Wraps a rotary embedding; holds theta, fp32 whatever the model's dtype, zero at the start (paper, 4D RoPE).

    Args:
        base: the language model's own rotary module; kept as `.base`.
        num_layers: None for one theta shared by all layers (our choice), else one row per decoder layer.
        implementation: of the operator, where the attention layers can take it (`attention.fuse`); else "reference".

    Attributes:
        theta_t, theta_h, theta_w: (d,) or (num_layers, d), d = rotary_dim / 2 frequencies.
        coordinates: (b or 1, s, 3) for the forward pass in flight, or None.

    Raises:
        ValueError: when the base returns no real (cos, sin) pair, e.g. complex rotary embeddings.
    """

    def __init__(
        self, base: nn.Module, num_layers: int | None = None, implementation: Implementation = "reference"
    ) -> None:
        super().__init__()
        self.layout, self.num_frequencies = probe(base)
        self.base = base
        self.num_layers = num_layers
        self.implementation = implementation
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
        self, x: Tensor, position_ids: Tensor, *args: Any, base: nn.Module | None = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        """(cos, sin) in the dtype of `x`; or (BaseTables, LearnableAngle), which the decoder layers finish.

        With `base`, another rotary embedding is turned in the place of the wrapper's own.
        """
        base = self.base if base is None else base
        coordinates = self.coordinates
        if coordinates is None:
            if not (torch.is_grad_enabled() and any(theta.requires_grad for theta in self.thetas)):
                return base(x, position_ids, *args, **kwargs)
            # Text only: the same values, but theta stays in the graph, or data-parallel ranks wait for its gradient.
            coordinates = x.new_zeros(1, x.shape[1], 3)
        exact = torch.empty(0, dtype=torch.float32, device=x.device)  # the base reads only its dtype and device
        cos, sin = base(exact, position_ids, *args, **kwargs)
        implementation = choose(self.implementation, x.device)
        angle = LearnableAngle(coordinates.to(cos.device, torch.float32), self._theta(), implementation, x.dtype)
        if self.num_layers is None and implementation == "reference":
            return turned(cos, sin, angle, self.layout, x.dtype)
        return BaseTables(ONE_EACH[self.layout](cos), ONE_EACH[self.layout](sin)), angle

    def _theta(self) -> Tensor:
        """(3, d) or (layers, 3, d), fp32."""
        return torch.stack([theta.float() for theta in self.thetas], -2)


class SameTheta(nn.Module):
    """Stands for a decoder's further rotary embedding, of the same layout, and turns it as its main one is turned.

    Gemma 3 of transformers 4 has one for its full and one for its sliding layers.
    """

    decoder: nn.Module

    def __init__(self, base: nn.Module, decoder: nn.Module, main: str) -> None:
        super().__init__()
        self.base, self.main = base, main
        self.__dict__["decoder"] = decoder  # no submodule: it is above

    def forward(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return self.decoder.get_submodule(self.main)(x, position_ids, *args, base=self.base, **kwargs)


def turned(cos: Tensor, sin: Tensor, angle: LearnableAngle, layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rotate (cos, sin), (b, s, D), on by the learnable angle, in fp32, then cast."""
    cos, sin = turn(cos, sin, angle.coordinates, angle.theta, layout)
    return cos.to(dtype), sin.to(dtype)


# One number per frequency out of a rotary dimension; SPREAD's inverse.
ONE_EACH: dict[str, Callable[[Tensor], Tensor]] = {
    "half": lambda table: table.chunk(2, -1)[0],
    "interleaved": lambda table: table[..., ::2],
    "single": lambda table: table,
}


def probe(base: nn.Module) -> tuple[str, int]:
    """Find the layout and the number of frequencies of a rotary embedding by running it at position 1."""
    if isinstance(base, DynImgRotaryEmbedding):
        raise ValueError("this rotary embedding is wrapped already")
    sin = _sin_at_one(base)
    sin = sin.reshape(-1, sin.shape[-1])[0]  # of M-RoPE's three position axes, where they come apart, any
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
        complex_numbers = isinstance(out, Tensor) and out.is_complex()
        kind = "complex numbers" if complex_numbers else type(out).__name__
        failures.append(f"it returned {kind}, not a real (cos, sin) pair")
    raise ValueError(
        f"{type(base).__name__} cannot be wrapped: {'; '.join(dict.fromkeys(failures))}. Supported are "
        "rotary embeddings that return (cos, sin); for this model use DynImgConfig(rope_4d=False)"
    )
