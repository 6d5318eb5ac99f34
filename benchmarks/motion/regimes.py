"""What becomes of the visual tokens on their way to the language model, the same for 1D and 4D RoPE.

A regime chooses, per clip, which tokens come in which order; their coordinates go with them.

    fixed      all in the layout's order: the sequence index tells where a token belongs
    dropped    10 of a DynImg's 16 tokens, at random, in order
    shuffled   a DynImg's tokens in random order (a control, no use case)
    random     for training only: of each DynImg as many tokens as is drawn for the batch, at random, in order
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynimg_plugin import DynImgConfig
from dynimg_plugin.coordinates import CoordinateTable, token_coordinates
from dynimg_plugin.layout import DynImgLayout

REGIMES = ("fixed", "dropped", "shuffled")
RANDOM = "random"
KEPT = 10 / 16


def coordinates_of(config: DynImgConfig) -> Tensor:
    """(tokens, 3), (t, h, w) of a clip's visual tokens, from the project's own table."""
    table = CoordinateTable.from_layout(DynImgLayout.from_config(config))
    placeholders = torch.zeros(1, config.num_images * table.num_tokens, dtype=torch.long)
    return token_coordinates(placeholders, 0, table)[0]


def choose(regime: str, rows: int, images: int, tokens: int, generator: torch.Generator) -> Tensor | None:
    """(rows, tokens that go on), which of a clip's `images * tokens` tokens come in which order; None: all as they are.

    Raises:
        ValueError: an unknown regime.
    """
    if regime not in (*REGIMES, RANDOM):
        raise ValueError(f"regime {regime!r} is not known; allowed: {', '.join(REGIMES)}, {RANDOM}")
    if regime == "fixed":
        return None
    order = torch.rand(rows, images, tokens, generator=generator).argsort(-1)
    if regime == "dropped":
        order = order[..., : round(KEPT * tokens)].sort(-1).values
    if regime == RANDOM:
        order = order[..., : int(torch.randint(1, tokens + 1, (), generator=generator))].sort(-1).values
    return (order + tokens * torch.arange(images)[:, None]).flatten(1)


def taken(features: Tensor, coordinates: Tensor, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Features (n, tokens, c) and coordinates (n or 1, tokens, 3) of the chosen tokens."""
    if chosen is None:
        return features, coordinates[None]
    chosen = chosen.to(features.device)
    return features.gather(1, chosen[..., None].expand(-1, -1, features.shape[-1])), coordinates[chosen]
