"""Hands the 4D RoPE operator to attention layers: per instance, undoable, nothing of the class or module is changed.

An attention layer of transformers calls `apply_rotary_pos_emb(q, k, cos, sin)` by its module's global name. Its
`forward` is built anew for one instance, with the same code and with our function under that name:

    attention.forward = <the class's forward, its globals copied, apply_rotary_pos_emb = the operator>
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from dynimg_plugin.ops import reference, rope4d
from dynimg_plugin.ops.reference import SPREAD
from dynimg_plugin.rope import BaseTables, DynImgRotaryEmbedding

APPLY = "apply_rotary_pos_emb"


def fusable(layers: Any, rotary: DynImgRotaryEmbedding) -> tuple[dict[str, bool], str]:
    """The attention modules that can take the operator: {path from `layers`: pairs are interleaved}.

    Returns:
        The modules, and why there are none; all layers or none.
    """
    found: dict[str, bool] = {}
    for index, layer in enumerate(layers):
        of_layer = [(path, module) for path, module in layer.named_modules() if _calls_apply(own_forward(type(module)))]
        if not of_layer:
            return {}, f"{type(layer).__name__} calls no {APPLY}()"
        for path, attention in of_layer:
            if "forward" in attention.__dict__:
                return {}, f"{type(attention).__name__}.forward of this instance was replaced by other code"
            interleaved = _pairs(attention, rotary)
            if interleaved is None:
                return {}, f"{APPLY}() of {type(attention).__name__} does not rotate q and k in a known way"
            found[f"{index}.{path}"] = interleaved
    return found, "" if found else "the language model has no layers"


def fuse(attention: nn.Module, interleaved: bool) -> None:
    """Give this instance the operator in place of apply_rotary_pos_emb(); `del attention.forward` undoes it."""
    forward = own_forward(type(attention))
    names = {**forward.__globals__, APPLY: operator(forward.__globals__[APPLY], interleaved)}
    del names["__name__"]  # torch.compile would guard the module of that name instead of these globals
    ours = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    ours.__module__, ours.__kwdefaults__ = forward.__module__, forward.__kwdefaults__
    attention.__dict__["forward"] = MethodType(ours, attention)


def own_forward(attention_class: type) -> Any:
    """The class's forward() without what decorates it, e.g. for arguments that were renamed."""
    return inspect.unwrap(getattr(attention_class, "forward"))  # noqa: B009 (mypy: not every class has one)


def is_fused(attention: nn.Module) -> bool:
    """Whether this instance's forward is still the one that fuse() gave it."""
    forward = getattr(attention.__dict__.get("forward"), "__func__", None)
    return getattr(getattr(forward, "__globals__", {}).get(APPLY), "is_dynimg", False)


def operator(original: Callable[..., Any], interleaved: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    """apply_rotary_pos_emb() that takes the wrapper's pair too; plain cos and sin go to the original."""

    def apply(q: Tensor, k: Tensor, cos: Any, sin: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(cos, BaseTables):
            return original(q, k, cos, sin, *args, **kwargs)
        if args or kwargs.get("unsqueeze_dim", 1) != 1 or set(kwargs) - {"unsqueeze_dim"}:
            raise TypeError(f"{APPLY}() was called with {args} {kwargs}; use implementation='reference'")
        if sin.theta.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"theta came as {sin.theta.dtype}: something casts the inputs of layers; it must stay fp32")
        dtype = torch.promote_types(q.dtype, sin.dtype)  # as q * cos would; they differ under autocast
        return rope4d(
            q.to(dtype),
            k.to(dtype),
            cos.cos,
            cos.sin,
            sin.coordinates,
            sin.theta,
            interleaved=interleaved,
            match_eager=True,  # bf16 models keep the pretrained model's bits on day 0
            implementation=sin.implementation,
        )

    apply.is_dynimg = True  # type: ignore[attr-defined]
    return apply


def _calls_apply(forward: Any) -> bool:
    return isinstance(forward, FunctionType) and APPLY in forward.__code__.co_names and APPLY in forward.__globals__


def _pairs(attention: Any, rotary: DynImgRotaryEmbedding) -> bool | None:
    """Whether the layer's own function rotates interleaved pairs, by asking it; None when it does something else."""
    dim = getattr(attention, "head_dim", 2 * rotary.num_frequencies)
    generator = torch.Generator().manual_seed(0)
    plain: Any = {"generator": generator, "device": "cpu", "dtype": torch.float32}  # whatever the caller's defaults are
    q, k = torch.randn(2, 1, 2, 3, dim, **plain)
    angle = torch.randn(1, 3, rotary.num_frequencies, **plain)
    spread = SPREAD[rotary.layout]
    try:
        theirs = own_forward(type(attention)).__globals__[APPLY](q, k, spread(angle).cos(), spread(angle).sin())
    except (TypeError, ValueError, RuntimeError, IndexError):  # another signature or another shape
        return None
    for interleaved in (False, True):
        ours = [reference.apply(x, angle.cos(), angle.sin(), interleaved) for x in (q, k)]
        if all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True)):
            return interleaved
    return None
