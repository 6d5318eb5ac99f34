"""What becomes of the visual tokens on their way to the language model, the same for 1D and 4D RoPE.

A regime chooses, per clip, which tokens come in which order; their coordinates go with them.

    fixed        all in the layout's order: the sequence index tells where a token belongs
    dropped      10 of a DynImg's 16 tokens, at random, in order, and what is left closes ranks
    shuffled     a DynImg's tokens in random order (a control, no use case)
    order        the DynImgs in random order, each as it is
    irregular    2 to 4 of the DynImgs, at random, in order: how long it is between them differs
    stills       before some DynImgs stands a still of another clip: the cells of a key frame, at coordinate 0
    random       for training only: of each DynImg as many tokens as is drawn for the batch, at random, at their own
                 positions in the sequence (with `least_keep` of `dynimg train` the policy chooses)
    key          for training only: the key frames' cells

How many, and before which DynImgs, is drawn for the batch. In "order" and "irregular" t may be real time.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dynimg_plugin import DynImgConfig
from dynimg_plugin.coordinates import CoordinateTable, frame_times, token_coordinates
from dynimg_plugin.layout import DynImgLayout

from .arms import frame_numbers

CHOICES = {  # what runs call their regime -> what is chosen; "_time": t is real time with 4D RoPE, else slots
    **{name: name for name in ("fixed", "dropped", "shuffled", "order", "stills")},
    **{"order_time": "order", "irregular_slot": "irregular", "irregular_time": "irregular"},
}
RANDOM, KEY = "random", "key"
DRAWN_FOR_A_BATCH = ("irregular", "stills", RANDOM)
KEPT = 10 / 16
FEWEST = 2  # DynImgs in "irregular"
KEY_TOKENS = 12  # of a DynImg's 16, the first ones


@cache
def coordinates_of(config: DynImgConfig, images: tuple[int, ...] | None = None) -> Tensor:
    """(tokens, 3), (t, h, w) of a clip's visual tokens, or of some of its DynImgs', from the project's own table."""
    layout = DynImgLayout.from_config(config)
    table = CoordinateTable.from_layout(layout)
    images = tuple(range(config.num_images)) if images is None else images
    placeholders = torch.zeros(1, len(images) * table.num_tokens, dtype=torch.long)
    times = None
    if config.t_mode == "time":
        if config.num_images != len(frame_numbers("canvas")):
            raise ValueError("real time is built for the canvas arm's frames")
        times = frame_times(frame_numbers("canvas")[list(images)].tolist())[None]
    return token_coordinates(placeholders, 0, table, times)[0]


def choose(regime: str, rows: int, images: int, tokens: int, generator: torch.Generator) -> Tensor | None:
    """(rows, tokens that go on), which of a clip's `images * tokens` tokens come in which order; None: all as they are.

    Numbers from `images * tokens` on are tokens of another clip.

    Raises:
        ValueError: an unknown regime.
    """
    if regime == "fixed":
        return None
    if regime in ("order", "irregular"):
        return _whole(regime == "irregular", rows, images, tokens, generator)
    if regime == KEY:
        return torch.arange(images * tokens).unflatten(0, (images, tokens))[:, :KEY_TOKENS].flatten().expand(rows, -1)
    if regime == "stills":
        return _stills(images, tokens, generator).expand(rows, -1)
    order = torch.rand(rows, images, tokens, generator=generator).argsort(-1)
    if regime == "dropped":
        order = order[..., : round(KEPT * tokens)].sort(-1).values
    elif regime == RANDOM:
        order = order[..., : int(torch.randint(1, tokens + 1, (), generator=generator))].sort(-1).values
    elif regime != "shuffled":
        raise ValueError(
            f"regime {regime!r} is not known; allowed: {', '.join([*dict.fromkeys(CHOICES.values()), RANDOM, KEY])}"
        )
    return (order + tokens * torch.arange(images)[:, None]).flatten(1)


def _whole(irregular: bool, rows: int, images: int, tokens: int, generator: torch.Generator) -> Tensor:
    order = torch.rand(rows, images, generator=generator).argsort(-1)
    if irregular:
        number = int(torch.randint(FEWEST, images + 1, (), generator=generator))
        order = order[:, :number].sort(-1).values
    return (order[..., None] * tokens + torch.arange(tokens)).flatten(1)


def _stills(images: int, tokens: int, generator: torch.Generator) -> Tensor:
    parts = []
    for image, still in enumerate(torch.randint(2, (images,), generator=generator).tolist()):
        own = image * tokens + torch.arange(tokens)
        parts += [images * tokens + own[: KEY_TOKENS * still], own]
    return torch.cat(parts)


def taken(features: Tensor, config: DynImgConfig, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Features (n, tokens, c) and coordinates (n or 1, tokens, 3) of the chosen tokens."""
    table = coordinates_of(config).to(features.device)
    if chosen is None:
        return features, table[None]
    chosen = chosen.to(features.device)
    pool = features if chosen.max() < len(table) else torch.cat((features, features.roll(1, 0)), 1)
    found = pool.gather(1, chosen[..., None].expand(-1, -1, pool.shape[-1]))
    if config.t_mode == "time":  # whole DynImgs, timed from the first one on
        tokens = len(table) // config.num_images
        shown = (chosen[:, ::tokens] // tokens).tolist()
        return found, torch.stack([coordinates_of(config, tuple(images)) for images in shown]).to(features.device)
    return found, torch.cat((table, torch.zeros_like(table)))[chosen]


def places_of(chosen: Tensor | None, questions: int, tokens: int) -> Tensor | None:
    """(n, visual + questions) position ids of tokens that stay where they were among all `tokens`; None: all did."""
    return None if chosen is None else F.pad(chosen, (0, questions), value=tokens)


def parts_of(config: DynImgConfig, chosen: Tensor | None) -> Tensor:
    """What each chosen token shows: 0 a key frame, 1 a prompt, 2 something else, (n or 1, tokens)."""
    own = (coordinates_of(replace(config, t_mode="slot"))[:, 0] != 0).long()
    return own[None] if chosen is None else torch.cat((own, torch.full_like(own, 2)))[chosen]
