"""A token budget: which of a DynImg's pooled cells the language model gets to see.

keep=0.4 keeps 58 of 144 cells of every DynImg, in their order, each with its own (t, h, w) and its own position in the
sequence (see `places`). How many are kept is known beforehand, so that a processor can write the placeholders; which
ones, the features tell in every forward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.layout import DynImgLayout

STEPS_PER_UNIT = 2**12  # two cells that look the same may differ by rounding, another way in every batch size
PLASTIC = 1.32471795724474602596  # its powers spread points over a square as the golden ratio does over a line


def choose_cells(cells: Tensor, layout: DynImgLayout, config: DynImgConfig) -> Tensor:
    """Which cells of every DynImg are kept: features (n, cells, c) -> indices (n, kept), ascending.

    No randomness. Ties: with "motion" those are kept that "uniform" would keep, with "similarity" the first.
    """
    if config.keep_policy == "uniform":
        return torch.tensor(spread_cells(layout, config), device=cells.device).expand(len(cells), -1)
    with torch.autocast(cells.device.type, enabled=False):  # bf16 products would choose others than inference does
        directions = F.normalize(cells.detach().float(), dim=-1)
        if config.keep_policy == "motion":
            spread = torch.tensor(spread_order(layout), device=cells.device)
            scores = _rounded(motion(directions, layout))[:, spread]
            ranks = scores.sort(dim=-1, descending=True, stable=True).indices[:, : config.tokens_per_image]
            return spread[ranks].sort(-1).values
        return _unlike_each_other(_rounded(1 - directions @ directions.mT), config.tokens_per_image)


def spread_cells(layout: DynImgLayout, config: DynImgConfig) -> list[int]:
    """Evenly spread over rows and columns, the same in every DynImg; a smaller budget keeps some of a larger one's."""
    return sorted(spread_order(layout)[: config.tokens_per_image])


def spread_order(layout: DynImgLayout) -> list[int]:
    """All cells, in such an order that as many as one likes of the first ones are evenly spread."""
    places = [divmod(cell, layout.pooled) for cell in range(layout.num_tokens)]
    ranks = [(row / PLASTIC + column / PLASTIC**2) % 1 for row, column in places]
    return sorted(range(layout.num_tokens), key=ranks.__getitem__)


def motion(directions: Tensor, layout: DynImgLayout) -> Tensor:
    """How far prompts and key frame differ at each cell's place: unit features (n, cells, c) -> (n, cells), 0 to 2.

    A prompt's cell is compared with the mean of the key frame's cells at its place; a key frame's cell counts for as
    much as the prompt that differs least there, for then that prompt repeats it. Our choice: by their mean or their
    largest difference, key frames' cells take the place of prompts' (seen on the miniature study's tuning split).
    """
    maps = directions.mT.unflatten(-1, (layout.pooled, layout.pooled))  # (n, c, h, w)
    key, *prompts = (region.cells for region in layout.regions)
    shown = maps[..., key.rows, key.columns]
    scores = maps.new_zeros(len(maps), layout.pooled, layout.pooled)
    least = torch.full_like(scores[:, key.rows, key.columns], torch.inf)
    for prompt in prompts:
        there = F.adaptive_avg_pool2d(shown, (prompt.h, prompt.w))
        apart = 1 - F.cosine_similarity(maps[..., prompt.rows, prompt.columns], there, dim=1)
        scores[:, prompt.rows, prompt.columns] = apart
        least = least.minimum(F.interpolate(apart[:, None], (key.h, key.w))[:, 0])
    scores[:, key.rows, key.columns] = least
    return scores.flatten(1)


def _unlike_each_other(apart: Tensor, number: int) -> Tensor:
    """Greedy farthest-point choice by distances (n, cells, cells) -> (n, number): next comes always the cell that is
    least like all chosen ones; the first is the one least like the whole DynImg."""
    rows = torch.arange(len(apart), device=apart.device)
    chosen = [apart.sum(-1).argmax(-1)]
    nearest = apart[rows, chosen[0]]
    for _ in range(number - 1):
        nearest[rows, chosen[-1]] = -torch.inf  # never again
        chosen.append(nearest.argmax(-1))
        nearest = nearest.minimum(apart[rows, chosen[-1]])
    return torch.stack(chosen, -1).sort(-1).values


def _rounded(distances: Tensor) -> Tensor:
    return (distances * STEPS_PER_UNIT).round()


def with_kept(config: DynImgConfig, kept: Tensor | None) -> DynImgConfig:
    """The config of a forward whose DynImgs bring fewer tokens than usual.

    Args:
        kept: tokens of each DynImg, the same number in every row; None: as many as the config says.

    Raises:
        ValueError: rows differ, or there are more than the config keeps.
    """
    if kept is None:
        return config
    most, number = config.tokens_per_image, int(kept.min())
    if number != int(kept.max()) or not 0 < number <= most:
        raise ValueError(
            f"dynimg_kept={kept.tolist()}: allowed is one number for all rows, from 1 to the {most} tokens that this "
            f"model keeps of a DynImg (keep={config.keep})"
        )
    return config if number == most else replace(config, keep=number / config.pooled_size**2)


def in_row(kept: Tensor, rows: int, num_tokens: int) -> Tensor:
    """Indices in every DynImg -> indices among all tokens of a row: (rows * images, kept) -> (rows, images * kept)."""
    kept = kept.unflatten(0, (rows, -1))
    first = torch.arange(kept.shape[1], device=kept.device) * num_tokens
    return (kept + first[:, None]).flatten(1)


def thinned(run: str, token: str, layout: DynImgLayout, config: DynImgConfig) -> str:
    """A run of placeholders for whole DynImgs, cut down to the budget.

    Those at evenly spread cells stay, so that what a family writes between rows (Mistral 3) stands where it did.
    """
    if config.keeps_all:
        return run
    kept, numbers = set(spread_cells(layout, config)), count()
    return re.sub(re.escape(token), lambda _: token if next(numbers) % layout.num_tokens in kept else "", run)


def kept_beforehand(shown: Sequence[Sequence[Any]], layout: DynImgLayout, config: DynImgConfig) -> Tensor | None:
    """What choose_cells() will choose for the DynImgs of each row, (rows, tokens), without features; None: all.

    Raises:
        ValueError: the policy reads features.
    """
    if config.keeps_all or not shown:
        return None
    if config.keep_policy != "uniform":
        raise ValueError(
            f"return_coordinates=True with keep={config.keep}: with keep_policy={config.keep_policy!r} only the "
            "model's features tell which tokens are kept; take keep_policy='uniform', or leave it out"
        )
    cells = torch.tensor(spread_cells(layout, config)).expand(sum(map(len, shown)), -1)
    return in_row(cells, len(shown), layout.num_tokens)


def placeholders_in(input_ids: Tensor | None, placeholder_id: int, config: DynImgConfig) -> Tensor:
    """(b, s), where the placeholders are.

    Raises:
        ValueError: there are no input ids to find them in.
    """
    if input_ids is None:
        raise ValueError(f"DynImgs with keep={config.keep} came with inputs_embeds; give input_ids instead")
    return input_ids == placeholder_id


def kept_of_rows(kept: Tensor | None, visual: Tensor, config: DynImgConfig) -> Tensor:
    """Of every prompt with DynImgs, which of its tokens are kept, (rows with DynImgs, tokens).

    generate() may have multiplied the prompts, e.g. for beams, but not `kept`, (rows with DynImgs once, tokens).

    Raises:
        ValueError: the placeholders are not those of this budget, or the DynImgs came in parts.
    """
    if kept is None:
        raise ValueError(
            f"DynImgs with keep={config.keep} reached the language model in chunks; which tokens are kept is known of "
            "the whole prompt only: leave prefill_chunk_size out"
        )
    counts = visual.sum(-1)
    counts = counts[counts > 0]
    kept = kept.repeat_interleave(max(1, len(counts) // len(kept)), 0)
    if len(kept) != len(counts) or (counts != kept.shape[1]).any():
        raise ValueError(
            f"the prompts hold {counts.tolist()} visual tokens, but with keep={config.keep} the model keeps "
            f"{kept.shape[1]} of each of its {len(kept)} rows of DynImgs; use a DynImgProcessor of its config"
        )
    return kept
