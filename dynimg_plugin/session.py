"""What runs inside a patched model: coordinates into the rotary embedding, DynImgs into the feature method."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from threading import RLock, local
from types import MethodType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dynimg_plugin.budget import choose_cells, in_row, kept_of_rows, placeholders_in, with_kept
from dynimg_plugin.compat import pixel_input
from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.coordinates import CoordinateTable, token_coordinates
from dynimg_plugin.families import Patch
from dynimg_plugin.layout import NEWLINE, DynImgLayout
from dynimg_plugin.mrope import with_positions
from dynimg_plugin.ops import Implementation
from dynimg_plugin.places import Ahead, ahead_of, by_name, remember, with_further_places, with_places
from dynimg_plugin.pooling import pool_tokens, with_newlines
from dynimg_plugin.rope import DynImgRotaryEmbedding
from dynimg_plugin.towers import encode_beside

EXTRA_INPUTS = ("rope4d_coords", "dynimg_times")
KEPT = "dynimg_kept"  # of forward alone: generate() encodes before it hands on what it was given


@dataclass
class DynImgFeatures(BaseModelOutputWithPooling):
    """Marks visual features that came from DynImgs; generate() carries them from the encoder to the prefill.

    deepstack_features: per deeper layer that takes features too, what pooler_output is for the input.
    kept: (rows, tokens), with a token budget which of a row's tokens these are.
    """

    deepstack_features: list[Any] | None = None
    kept: Tensor | None = None


class Turn:
    """A lock that a copy of the model does not share: coordinates wait on the module for one forward at a time."""

    def __init__(self) -> None:
        self.lock, self.mine = RLock(), local()

    def take(self) -> None:
        self.lock.acquire()
        self.mine.taken = self.taken + 1

    def give(self) -> None:
        self.mine.taken = self.taken - 1
        self.lock.release()

    @property
    def taken(self) -> int:
        """How often this thread holds it; 0 in a forward whose pre-hook failed before it took its turn."""
        return getattr(self.mine, "taken", 0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Turn:
        return Turn()


@dataclass
class Session:
    """What a patched model needs at run time; it hangs on the core as `dynimg`."""

    patch: Patch
    config: DynImgConfig
    layout: DynImgLayout
    table: CoordinateTable
    implementation: Implementation = "auto"
    fused: list[str] = field(default_factory=list)  # paths of the attention modules that take the operator
    not_fused: str = ""  # why there are none
    overrides: list[tuple[str, str]] = field(default_factory=list)  # (path of a module in the model, its method)
    handles: list[Any] = field(default_factory=list)
    turn: Turn = field(default_factory=Turn)
    encoded: DynImgFeatures | None = None  # of the forward in flight, where they are needed before it asks for them
    ahead: Ahead | None = None  # of the forward in flight, see places.remember()

    @classmethod
    def of(cls, patch: Patch, config: DynImgConfig, implementation: Implementation) -> Self:
        layout = DynImgLayout.from_config(config)
        return cls(patch, config, layout, CoordinateTable.from_layout(layout), implementation)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a model patched with DynImg cannot be pickled; use save_pretrained(), or remove_dynimg() first"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        copied = type(self).of(self.patch, self.config, self.implementation)
        memo[id(self)] = copied  # the copied hooks are bound to it
        copied.fused, copied.not_fused, copied.overrides = list(self.fused), self.not_fused, list(self.overrides)
        copied.handles = deepcopy(self.handles, memo)
        return copied

    @property
    def pixels(self) -> str:
        """The name under which the family takes pictures."""
        return pixel_input(self.patch.model_type)

    def rotary(self, core: Any) -> list[DynImgRotaryEmbedding]:
        """Found through the module in use, not remembered: peft and copies put their own in its place."""
        owner = core.get_submodule(self.patch.language_model).get_submodule(self.patch.rotary)
        return [module for module in owner.modules() if isinstance(module, DynImgRotaryEmbedding)]

    def attention(self, core: Any) -> list[Any]:
        """The attention modules that were fused."""
        return [core.get_submodule(path) for path in self.fused]

    def before(self, core: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Forward pre-hook of the core: take our inputs out and give every rotary wrapper its coordinates."""
        for path, name in self.overrides:
            if path == self.patch.core:
                rebind(core, name)
        for attention in self.attention(core):
            rebind(attention, "forward")
        explicit, times = (kwargs.pop(name, None) for name in EXTRA_INPUTS)
        config = with_kept(self.config, kwargs.pop(KEPT, None))
        coordinates = encoded = kept = ahead = None
        further = ahead_of(kwargs.get("past_key_values"))
        if self.config.rope_4d or not config.keeps_all or further is not None:
            given = by_name(core, args, kwargs)
            if not config.keeps_all and self._carries_dynimgs(given):
                encoded = self._encoded(core, given, config)
                visual = placeholders_in(given.get("input_ids"), core.config.image_token_id, config)
                kept = kept_of_rows(encoded.kept, visual, config)
                if "M-RoPE" in self.patch.rope:
                    args, kwargs = (), with_positions(core, given, visual, kept, config)
                else:
                    (kwargs, ahead), args = with_places(given, visual, kept, config), ()
            elif further is not None:
                args, kwargs = (), with_further_places(given, further, extent(given)[1])
            if self.config.rope_4d:
                coordinates = self.coordinates(core, given, explicit, times, kept)
        self.turn.take()
        self.encoded, self.ahead = encoded, ahead
        for module in self.rotary(core):
            module.coordinates = coordinates
        return args, kwargs

    def after(self, core: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Forward hook, called on errors too: also where the pre-hook failed, while another thread has its turn."""
        if not self.turn.taken:
            return
        for module in self.rotary(core):
            module.coordinates = None
        ahead, self.encoded, self.ahead = self.ahead, None, None
        self.turn.give()
        if ahead is not None and output is not None:
            remember(ahead, output)

    def coordinates(
        self,
        core: Any,
        given: dict[str, Any],
        explicit: Tensor | None,
        times: Tensor | None,
        kept: Tensor | None = None,
    ) -> Tensor | None:
        """(b or 1, s, 3) of the tokens of this forward, from the core's arguments by name; None: all are text."""
        placeholder, input_ids = core.config.image_token_id, given.get("input_ids")
        _, length, past = extent(given)
        if explicit is not None:
            if input_ids is not None and not past and (input_ids[:, explicit.shape[1] :] == placeholder).any():
                raise ValueError(f"rope4d_coords of shape {tuple(explicit.shape)} end before the prompt's last DynImg")
            return part_of(explicit, past, length)
        if not self._carries_dynimgs(given):
            return None  # a placeholder that the model itself wrote is text
        if input_ids is None:
            raise ValueError("DynImgs came with inputs_embeds; give rope4d_coords too, or input_ids instead")
        if past:
            raise ValueError(
                "DynImgs reached the language model in chunks (prefill_chunk_size?); 4D RoPE then needs the positions "
                "of the whole prompt: processor(..., return_coordinates=True) adds them as rope4d_coords"
            )
        if (self.config.t_mode == "time") != (times is not None):
            raise ValueError(
                f"t_mode={self.config.t_mode!r} of the model {'needs' if times is None else 'takes no'} dynimg_times, "
                "(rows, images, frames); use a DynImgProcessor of the same config"
            )
        counts = (input_ids == placeholder).sum(-1)
        if NEWLINE in self.layout.order and (counts % len(self.layout.order)).any():
            raise ValueError(
                f"a prompt holds {counts.max().item()} visual tokens, but with newline={self.config.newline!r} they "
                f"come in runs of {len(self.layout.order)}; give DynImgProcessor the model's dynimg_config(model)"
            )
        return token_coordinates(input_ids, placeholder, self.table, times, kept)

    def taken(self) -> DynImgFeatures | None:
        """The features that this thread's forward has encoded beforehand, once; without a budget it has not."""
        if self.config.keeps_all and self.encoded is None:
            return None
        with self.turn.lock:
            encoded, self.encoded = self.encoded, None
        return encoded

    def _encoded(self, core: Any, given: dict[str, Any], config: DynImgConfig) -> DynImgFeatures:
        encoded = (given.get("mm_encoder_outputs") or {}).get("image")
        return encoded if isinstance(encoded, DynImgFeatures) else encode_dynimgs(core, given[self.pixels], config)

    def check_pixels(self, pixel_values: Tensor) -> None:
        """ValueError for the number or the shape of another fusion's images."""
        height, width = pixel_values.shape[-2:]
        below = (self.layout.rows - self.layout.grid) * (self.config.patch_size or 0)
        if pixel_values.shape[1] % self.layout.num_canvases or height - width != below:
            raise ValueError(
                f"pixel_values of shape {tuple(pixel_values.shape)}: {pixel_values.shape[1]} images per row of "
                f"{height} x {width}, but a DynImg with fusion={self.config.fusion!r} has {self.layout.num_canvases} "
                f"of {width + below} x {width}; use a DynImgProcessor of its config"
            )

    def encode(self, core: Any, pixels: Tensor) -> Any:
        """See Patch.encode; hooks that bring prompts into the tower serve one forward at a time."""
        if self.config.fusion != "tokens":
            return self.patch.encode(core, pixels)
        with self.turn.lock:
            return encode_beside(core, self.patch, self.config, self.layout, pixels)

    def _carries_dynimgs(self, given: dict[str, Any]) -> bool:
        encoded = (given.get("mm_encoder_outputs") or {}).get("image")
        return isinstance(encoded, DynImgFeatures) or self.is_dynimg(given)

    def is_dynimg(self, given: dict[str, Any]) -> bool:
        """DynImgs come as (rows, images, 3, H, W) without image sizes, see Patch.dims; anything else is not ours."""
        pixel_values = given.get(self.pixels)
        return pixel_values is not None and pixel_values.ndim == self.patch.dims and given.get("image_sizes") is None


def core_of(model: nn.Module) -> tuple[Any, Session]:
    """The core of a patched model and its session. ValueError when the model is not patched."""
    for module in model.modules():
        if isinstance(session := module.__dict__.get("dynimg"), Session):
            return module, session
    raise ValueError(f"this {type(model).__name__} is not patched; call apply_dynimg(model) first")


def extent(given: dict[str, Any]) -> tuple[int, int, int]:
    """Rows and tokens of a forward, and how many tokens its cache holds already."""
    input_ids, cache = given.get("input_ids"), given.get("past_key_values")
    rows, length = (given["inputs_embeds"] if input_ids is None else input_ids).shape[:2]
    return rows, length, 0 if cache is None else cache.get_seq_length()


def part_of(coordinates: Tensor, past: int, length: int) -> Tensor | None:
    """The coordinates of tokens [past, past + length); tokens written after the prompt are text."""
    now = coordinates[:, past : past + length]
    return F.pad(now, (0, 0, 0, length - now.shape[1])) if now.shape[1] else None


def rebind(core: Any, name: str) -> None:
    """Bind an overriding method to the module that runs: a data-parallel replica shares its original's attributes."""
    method = core.__dict__[name]
    if isinstance(method, MethodType) and method.__self__ is not core:  # accelerate's hooks put a partial over it
        core.__dict__[name] = MethodType(method.__func__, core)


def encode_dynimgs(core: Any, pixel_values: Tensor, config: DynImgConfig | None = None) -> DynImgFeatures:
    """(rows, images * canvases, 3, H, W) -> features whose pooler_output has one (images * 144, c) tensor per row.

    Args:
        config: with the budget of this forward, if it has one of its own.
    """
    session: Session = core.dynimg
    config = config or session.config
    session.check_pixels(pixel_values)
    rows, count = pixel_values.shape[:2]
    session.config.num_newlines(count // session.layout.num_canvases)  # raises where they are no whole videos
    encoded = session.encode(core, pixel_values.flatten(0, -4))
    patches, deeper = encoded if isinstance(encoded, tuple) else (encoded, None)

    def pooled(features: Tensor) -> Tensor:
        return pool_tokens(features.unflatten(0, (-1, session.layout.num_canvases)), session.layout)

    def per_row(cells: Tensor) -> Any:
        tokens = cells.reshape(rows, -1, cells.shape[-1])
        tokens = tokens if kept is None else tokens[torch.arange(rows, device=tokens.device)[:, None], kept]
        if NEWLINE in session.layout.order:
            tokens = with_newlines(tokens, core.image_newline, session.layout)
        return tokens if session.patch.stacked else list(tokens)

    cells = pooled(patches)
    kept = None
    if not config.keeps_all:
        kept = in_row(choose_cells(cells, session.layout, config), rows, session.layout.num_tokens)
    further = None if deeper is None else [per_row(pooled(features)) for features in deeper]
    return DynImgFeatures(pooler_output=per_row(cells), deepstack_features=further, kept=kept)
