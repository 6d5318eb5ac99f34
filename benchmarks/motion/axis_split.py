"""M-RoPE's split of frequencies over axes, as an arm: what 4D RoPE adds up, it deals out.

Of a head's 8 frequencies 2 turn with time, 3 with the row, 3 with the column (Qwen2-VL: 16, 24, 24 of 64). Time is the
frame's number in the clip; text comes after all of them on every axis, as in Qwen2-VL.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .questions import QUESTIONS
from .scenes import FRAMES, GROUP

SECTIONS = (2, 3, 3)


class AxisSplit(nn.Module):
    """Takes the place of a rotary embedding; `coordinates` (n or 1, visual tokens, 3) are set before every forward."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.coordinates = base, torch.zeros(1, 0, 3)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        text = self.coordinates.new_full((len(self.coordinates), len(QUESTIONS), 3), FRAMES)
        positions = torch.cat((self.coordinates, text), 1).to(x.device)
        axes = torch.repeat_interleave(torch.arange(3), torch.tensor(SECTIONS)).repeat(2)  # cos and sin hold two halves
        tables = [self.base(x, positions[..., axis]) for axis in range(3)]
        cos, sin = (torch.stack([table[i] for table in tables])[axes, ..., range(len(axes))] for i in (0, 1))
        return cos.movedim(0, -1), sin.movedim(0, -1)


def install(model: Any) -> Any:
    """Give a model without 4D RoPE the axis-split rotary embedding; returns the model."""
    decoder = model.model.language_model
    decoder.rotary_emb = AxisSplit(decoder.rotary_emb)
    return model


def in_clip(coordinates: Tensor, images: int) -> Tensor:
    """(..., tokens, 3) of all tokens in order, with t around each key frame -> t as the frame's number in the clip."""
    of_image = torch.arange(images, device=coordinates.device).repeat_interleave(coordinates.shape[-2] // images)
    return coordinates + torch.stack((of_image * GROUP + GROUP // 2, *of_image.new_zeros(2, len(of_image))), -1)
