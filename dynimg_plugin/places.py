"""Where kept tokens stand in the sequence: where they stood among all, so that the base's rotary embedding sees gaps.

    prompt with all tokens      a b [0 1 2 3 4 5] c d        positions 0 .. 9
    with a budget               a b [  1     4  ] c d        positions 0 1 3 6 8 9

In the miniature study a model that was trained on all tokens loses far less so than when what is kept closes ranks
(docs/study.md). M-RoPE has positions of its own for visual tokens, see `mrope`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from dynimg_plugin.config import DynImgConfig

AHEAD = "dynimg_ahead"  # on a cache: (b, 1), how far positions of its rows run ahead of the number of tokens


def with_places(
    given: dict[str, Any], visual: Tensor, kept: Tensor, config: DynImgConfig
) -> tuple[dict[str, Any], Tensor]:
    """The core's arguments with position_ids, and how far those of the text to come are ahead, (b, 1).

    Args:
        visual: (b, s), where the tokens of DynImgs are. kept: (rows with DynImgs, kept), indices among all of a row.
    """
    shift, ahead = gaps(visual, kept, config)
    moved = with_further_places(given, shift, visual.shape[1])
    if moved.get("attention_mask") is None:  # or gaps would be taken for the seams of packed sequences
        moved["attention_mask"] = torch.ones_like(visual, dtype=torch.long)
    return moved, ahead


def with_further_places(given: dict[str, Any], shift: Tensor, length: int) -> dict[str, Any]:
    """The core's arguments with position_ids moved by `shift`, (b, s) or (b, 1)."""
    arguments = {name: value for name, value in given.items() if name != "self"}
    positions = arguments.get("position_ids")
    if positions is None:
        positions = _in_a_row(arguments, length, shift.device)
    before = ahead_of(arguments)
    return {**arguments, "position_ids": positions.to(shift.device) + shift + (0 if before is None else before)}


def ahead_of(given: dict[str, Any]) -> Tensor | None:
    """(b, 1), of a forward that goes on after DynImgs with a budget; None of any other."""
    cache = given.get("past_key_values")
    return getattr(cache, AHEAD, None) if cache is not None and cache.get_seq_length() else None


def remember(ahead: Tensor, output: Any) -> None:
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


def _in_a_row(arguments: dict[str, Any], length: int, device: torch.device) -> Tensor:
    """(b or 1, s), as the models number tokens: padding does not count."""
    mask, cache = arguments.get("attention_mask"), arguments.get("past_key_values")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:].to(device)
    past = 0 if cache is None else cache.get_seq_length()
    return torch.arange(past, past + length, device=device)[None]
