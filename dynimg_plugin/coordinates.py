"""Paint (t, h, w) into the layout and carry it to the tokens of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dynimg_plugin.layout import NEWLINE, DynImgLayout, Region
from dynimg_plugin.pooling import pool_tokens


@dataclass(frozen=True)
class CoordinateTable:
    """Where the pooled tokens of one DynImg lie.

    Attributes:
        share: (tokens, frames), how much of each frame a token averages; one-hot with region pooling.
        hw: (tokens, 2), row and column in cells of the key frame, so the same place has the same (h, w) in all frames.
        slots: (frames,), the slot of each frame.
        order: (places,), what stands where among the tokens of `images` DynImgs, see DynImgLayout.order.
        images: DynImgs after which the order begins anew.
    """

    share: Tensor
    hw: Tensor
    slots: Tensor
    order: Tensor
    images: int

    @classmethod
    def from_layout(cls, layout: DynImgLayout) -> Self:
        frames = len(layout.regions)
        painted = torch.zeros(layout.num_canvases, layout.rows, layout.grid, frames + 2, dtype=torch.float64)
        key = layout.regions[0]
        for index, region in enumerate(layout.regions):
            area = painted[region.canvas, region.patches.rows, region.patches.columns]
            area[..., index] = 1
            area[..., frames], area[..., frames + 1] = _on_key_scale(region, key)
        pooled = pool_tokens(painted.flatten(1, 2)[None], layout)[0].float()
        slots, order = torch.tensor(layout.slots, dtype=torch.float32), torch.tensor(layout.order)
        return cls(pooled[:, :frames], pooled[:, frames:], slots, order, layout.images_per_order)

    @property
    def num_tokens(self) -> int:
        return self.share.shape[0]

    def to(self, device: torch.device) -> CoordinateTable:
        share, hw, slots, order = (part.to(device) for part in (self.share, self.hw, self.slots, self.order))
        return CoordinateTable(share, hw, slots, order, self.images)


def _on_key_scale(region: Region, key: Region) -> tuple[Tensor, Tensor]:
    """Centres of the region's patches in key-frame cells: rows (h, 1) and columns (w).

    A prompt of 7 patch rows under a key of 9 cell rows: row 3, its middle, lies at (3.5 / 7) * 9 - 0.5 = 4.
    """
    rows = (torch.arange(region.patches.h) + 0.5) / region.patches.h * key.cells.h - 0.5
    columns = (torch.arange(region.patches.w) + 0.5) / region.patches.w * key.cells.w - 0.5
    return rows[:, None], columns


def token_coordinates(
    input_ids: Tensor,
    placeholder_id: int,
    table: CoordinateTable,
    frame_times: Tensor | None = None,
    kept: Tensor | None = None,
) -> Tensor:
    """(t, h, w) of every token, (b, s) -> (b, s, 3) float32; text and newline tokens have zeros.

    The k-th placeholder of a row is token k % tokens of DynImg k // tokens, when newline tokens are not counted:
    coordinates belong to the placeholders, never to the sequence index, so padding on either side changes nothing.

    Args:
        frame_times: (rows with DynImgs, images, frames), t of every frame; None takes the slots.
        kept: (rows with DynImgs, placeholders), which of a row's tokens each placeholder holds; None: all, in order.
    """
    table = table.to(input_ids.device)
    mask = input_ids == placeholder_id
    place = (mask.cumsum(-1) - 1).clamp(min=0)
    row = (mask.any(-1).cumsum(0) - 1).clamp(min=0)[:, None]
    if kept is not None:
        place = kept.to(mask.device)[row, place]
    token = table.order[place % len(table.order)]
    mask = mask & (token != NEWLINE)
    cell = token % table.num_tokens
    image = place // len(table.order) * table.images + token // table.num_tokens
    if frame_times is None:
        t = (table.share @ table.slots)[cell]
    else:
        times = frame_times.to(input_ids.device, torch.float32)
        t = (table.share[cell] * times[row, image.clamp(0, times.shape[1] - 1)]).sum(-1)
    return torch.cat((t[..., None], table.hw[cell]), -1) * mask[..., None]


def frame_times(pts_seconds: Sequence[Sequence[float]]) -> Tensor:
    """Real times of all frames of a clip, (images, frames), in units of the mean distance between sampled frames.

    0, 5, 10, 15 s -> 0, 1, 2, 3; a clip whose frames are all the same one gets zeros.
    """
    seconds = torch.tensor(pts_seconds, dtype=torch.float64)
    elapsed = seconds - seconds.min()
    unit = elapsed.max() / max(1, seconds.numel() - 1)
    return (elapsed / unit if unit > 0 else elapsed).float()
