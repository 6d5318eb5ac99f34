"""M-RoPE's three positions for DynImgs of which not all tokens are kept.

The families' own rule counts an image's tokens as rows times columns, which a token budget breaks. Theirs is kept in
everything else: a text token takes the next number on all three axes; a DynImg's tokens start at the next number, take
their row and column on top of it, and the text after it goes on after its `side` numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from dynimg_plugin.compat import takes_outputs
from dynimg_plugin.config import DynImgConfig

ENTRY = "get_rope_index"


def check_core(core_class: type, config: DynImgConfig) -> None:
    """ValueError for a class whose positions cannot follow a token budget."""
    if not takes_outputs(core_class):
        raise ValueError(
            f"keep={config.keep}: in this release of transformers {core_class.__name__} numbers tokens in a way of its "
            "own while it writes, and kept tokens would lose their places; use keep=1.0, or transformers 5"
        )
    if not hasattr(core_class, ENTRY):
        raise ValueError(
            f"keep={config.keep}: {core_class.__name__} has M-RoPE but no {ENTRY}(), so kept tokens could not "
            "take their positions along; use keep=1.0"
        )


def rope_index(core_class: type, config: DynImgConfig) -> Callable[..., Any]:
    """The class's get_rope_index(), taking DynImgs with a budget too; everything else goes to the original.

    Which tokens are kept is not known to it: all of a DynImg's get the position where it starts, see placed().
    """
    check_core(core_class, config)
    original = getattr(core_class, ENTRY)
    signature = inspect.signature(original)

    @wraps(original)
    def get_rope_index(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        given = signature.bind_partial(self, *args, **kwargs).arguments
        input_ids, grids = given.get("input_ids"), given.get("image_grid_thw")
        if input_ids is None or grids is None or given.get("video_grid_thw") is not None:
            return original(self, *args, **kwargs)
        visual = input_ids == self.config.image_token_id
        if visual.sum() != len(grids) * config.tokens_per_image:
            return original(self, *args, **kwargs)
        attended = given.get("attention_mask")
        attended = torch.ones_like(visual) if attended is None else attended.bool()
        return starts(visual, attended, config)

    return get_rope_index


def with_positions(
    core: Any, given: dict[str, Any], visual: Tensor, kept: Tensor, config: DynImgConfig
) -> dict[str, Any]:
    """The core's arguments with position_ids: those that generate() has asked for, or starts(), by placed()."""
    check_core(type(core), config)
    arguments = {name: value for name, value in given.items() if name != "self"}
    positions = arguments.get("position_ids")
    if positions is None:
        attended = arguments.get("attention_mask")
        attended = torch.ones_like(visual) if attended is None else attended.bool()
        positions, core.rope_deltas = starts(visual, attended, config)
    return {**arguments, "position_ids": placed(positions, visual, kept, config)}


def starts(visual: Tensor, attended: Tensor, config: DynImgConfig) -> tuple[Tensor, Tensor]:
    """(3, b, s) positions, equal on all axes, and (b, 1) how far numbers run ahead of tokens at the end of a row.

    Args:
        visual: (b, s), where the tokens of DynImgs are. attended: (b, s), False at padding, whose position is 0.
    """
    text = (attended & ~visual).long()
    order = visual.long().cumsum(-1) - visual.long()  # tokens of DynImgs before this one
    before = order // config.tokens_per_image * config.pooled_size
    positions = ((text.cumsum(-1) - text + before) * attended).expand(3, -1, -1)
    images = visual.sum(-1, keepdim=True) // config.tokens_per_image
    following = text.sum(-1, keepdim=True) + images * config.pooled_size
    return positions, following - attended.sum(-1, keepdim=True)


def placed(positions: Tensor, visual: Tensor, kept: Tensor, config: DynImgConfig) -> Tensor:
    """Put every kept token on its row and column: (3, b, s), or (4, b, s) with text positions before the three.

    Args:
        kept: (rows with DynImgs, kept), indices among all tokens of a row.
    """
    cells = kept.flatten().to(positions.device) % config.pooled_size**2
    at_start = positions[-3][visual]
    placed = positions.clone()
    placed[-2, visual] = at_start + cells // config.pooled_size
    placed[-1, visual] = at_start + cells % config.pooled_size
    return placed
