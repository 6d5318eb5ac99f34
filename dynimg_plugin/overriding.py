"""Methods and hooks that apply_dynimg() puts into a model's instances, made of the class's own methods."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import nn

from dynimg_plugin.compat import returned
from dynimg_plugin.ops.reference import SPREAD
from dynimg_plugin.rope import LearnableAngle, turned
from dynimg_plugin.session import EXTRA_INPUTS, core_of, encode_dynimgs


def dynimg_features(core_class: type, name: str) -> Callable[..., Any]:
    """The class's feature method `name`, taking DynImgs too; what is no DynImg goes to the original."""
    original = getattr(core_class, name)
    signature = inspect.signature(original)

    @wraps(original)
    def features(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind_partial(self, *args, **kwargs).arguments
        if not self.dynimg.is_dynimg(given):
            return original(self, *args, **kwargs)
        encoded = self.dynimg.taken() or encode_dynimgs(self, given[self.dynimg.pixels])
        return returned(core_class, encoded)

    return features


def with_rows_expanded(model_class: Any) -> Callable[..., Any]:
    """The class's _expand_inputs_for_generation(), which takes pixel_values for patches of all rows, on DynImgs too."""
    original = model_class._expand_inputs_for_generation

    @wraps(original)
    def expand(self: Any, expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
        session = core_of(self)[1]
        if not session.is_dynimg(kwargs):
            return original(self, expand_size, *args, **kwargs)
        pixels = kwargs.pop(session.pixels)
        input_ids, inputs = original(self, expand_size, *args, **kwargs)
        return input_ids, {**inputs, session.pixels: pixels.repeat_interleave(expand_size, dim=0)}

    return expand


def with_extra_inputs(model_class: type) -> Callable[..., Any]:
    """prepare_inputs_for_generation() that names our inputs too, for generate() refuses keywords it does not name."""
    original = getattr(model_class, "prepare_inputs_for_generation")  # noqa: B009 (mypy: not every class has one)
    signature = inspect.signature(original)
    names = list(signature.parameters.values())
    at = next((i for i, name in enumerate(names) if name.kind is name.VAR_KEYWORD), len(names))
    ours = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in EXTRA_INPUTS]

    @wraps(original)
    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs)

    prepare.__signature__ = signature.replace(parameters=[*names[:at], *ours, *names[at:]])  # type: ignore[attr-defined]
    return prepare


def finish_angles(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, index: int, layout: str
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Pre-hook of a decoder layer when every layer has its own theta: hand on this layer's angle."""
    hidden = args[0] if args else kwargs["hidden_states"]
    own: dict[str, Any] = {}
    for name in [name for name in kwargs if name.startswith("position_embeddings")]:  # two in older Gemma 3
        base, angle = kwargs[name]
        if isinstance(angle, LearnableAngle):
            own[name] = base, angle.of_layer(index)
            if angle.implementation == "reference":
                tables = SPREAD[layout](base.cos), SPREAD[layout](base.sin)
                own[name] = turned(*tables, own[name][1], layout, hidden.dtype)
    return (args, {**kwargs, **own}) if own else None
