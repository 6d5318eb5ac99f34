"""Where kept tokens stand in the sequence: where they stood among all, so that the base's rotary embedding sees gaps.

    prompt with all tokens      a b [0 1 2 3 4 5] c d        positions 0 .. 9
    with a budget               a b [  1     4  ] c d        positions 0 1 3 6 8 9

In the miniature study a model that was trained on all tokens loses far less so than when what is kept closes ranks
(docs/study.md). M-RoPE has positions of its own for visual tokens, see `mrope`.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache

from dynimg_plugin.config import DynImgConfig

AHEAD = "dynimg_ahead"  # on a cache: an Ahead


class Ahead(NamedTuple):
    """Positions run ahead of a cache's length by `shift`, (b, 1), once it holds tokens `first` to `end`: DynImgs."""

    first: int
    end: int
    shift: Tensor


def by_name(core: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a core's forward, "self" among them; those without a name of their own beside the others."""
    signature = inspect.signature(type(core).forward)
    given = signature.bind_partial(core, *args, **kwargs).arguments
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(parameter.name, {})
    return given


def with_places(
    given: dict[str, Any], visual: Tensor, kept: Tensor, config: DynImgConfig
) -> tuple[dict[str, Any], Ahead]:
    """The core's arguments with position_ids, and how far those of the text to come are ahead.

    Args:
        visual: (b, s), where the tokens of DynImgs are. kept: (rows with DynImgs, kept), indices among all of a row.

    Raises:
        ValueError: the cache holds something already.
    """
    if (cache := given.get("past_key_values")) is not None and cache.get_seq_length():
        raise ValueError(
            f"DynImgs with keep={config.keep} came after {cache.get_seq_length()} tokens that are in the cache; "
            "give the whole prompt at once"
        )
    shift, further = gaps(visual, kept, config)
    moved = with_further_places(given, shift, visual.shape[1])
    if moved.get("attention_mask") is None:  # or gaps would be taken for the seams of packed sequences
        moved["attention_mask"] = torch.ones_like(visual, dtype=torch.long)
    columns = visual.any(0).nonzero().flatten()
    return moved, Ahead(int(columns[0]), int(columns[-1]) + 1, further)


def with_further_places(given: dict[str, Any], shift: Tensor, length: int) -> dict[str, Any]:
    """The core's arguments with position_ids moved by `shift`, (b, s) or (b, 1)."""
    arguments = {name: value for name, value in given.items() if name != "self"}
    positions, cache = arguments.get("position_ids"), arguments.get("past_key_values")
    if positions is None:  # as the models number tokens themselves
        past = 0 if cache is None else int(cache.get_seq_length())
        positions = torch.arange(past, past + length)[None]
    return {**arguments, "position_ids": positions.to(shift.device) + shift}


def ahead_of(cache: Any) -> Tensor | None:
    """(b, 1), where a forward goes on after DynImgs with a budget; None otherwise. Forgets it in an emptied cache.

    Raises:
        ValueError: the cache was cut inside the DynImgs.
    """
    noted: Ahead | None = getattr(cache, AHEAD, None)
    if noted is None:
        return None
    length = cache.get_seq_length()
    if length >= noted.end:
        return noted.shift
    if length > noted.first:
        raise ValueError(
            f"the cache was cut to {length} tokens, inside the DynImgs with a budget that it holds, {noted.first} to "
            f"{noted.end}; cut it to {noted.end} or more, or to {noted.first} or less"
        )
    delattr(cache, AHEAD)
    return None


def remember(ahead: Ahead, output: Any) -> None:
    """Write on the cache that a forward returns how far its positions are ahead; a copied cache brings it along."""
    for part in output if isinstance(output, tuple) else output.values():
        if isinstance(part, Cache):
            setattr(part, AHEAD, ahead)


def gaps(visual: Tensor, kept: Tensor, config: DynImgConfig) -> tuple[Tensor, Tensor]:
    """How many tokens were dropped before each token of a row, (b, s), and before the text after it all, (b, 1)."""
    tokens, whole = config.tokens_per_image, config.pooled_size**2
    seen = visual.long().cumsum(-1)
    images, within = seen // tokens, seen % tokens
    dropped = images * (whole - tokens)  # of text: those of the DynImgs that are complete
    rows = visual.any(-1).nonzero().flatten()
    kept = kept.to(visual.device)
    of_kept = kept - torch.arange(kept.shape[1], device=kept.device)
    last = (seen[rows] - 1).clamp(min=0)
    inside = visual[rows] | (within[rows] > 0)  # and what a family writes between a DynImg's rows
    dropped[rows] = torch.where(inside, of_kept.gather(1, last), dropped[rows])
    return dropped, images[:, -1:] * (whole - tokens)
