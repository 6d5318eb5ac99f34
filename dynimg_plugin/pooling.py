"""Average a layout's patches down to its pooled cells; features and coordinates go through the same function."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dynimg_plugin.layout import DynImgLayout


def pool_tokens(patches: Tensor, layout: DynImgLayout) -> Tensor:
    """(n, canvases, rows * grid, c) -> (n, pooled * pooled, c).

    Each region is averaged apart with adaptive average pooling, the operator of the paper's recipe (PLLaVA), so no
    cell mixes two frames; a plain layout has one region, the whole grid.

    Raises:
        ValueError: when the patches do not fit the layout.
    """
    expected = (layout.num_canvases, layout.rows * layout.grid)
    if patches.ndim != 4 or patches.shape[1:3] != expected:
        raise ValueError(
            f"patch features of shape {tuple(patches.shape)}, expected (n, {expected[0]}, {expected[1]}, c)"
        )
    maps = rearrange(patches, "n k (h w) c -> k n c h w", h=layout.rows)
    cells = maps.new_empty(*maps.shape[1:3], layout.pooled, layout.pooled)
    for region in layout.pooling_regions:
        source = maps[region.canvas][..., region.patches.rows, region.patches.columns]
        size = (region.cells.h, region.cells.w)
        cells[..., region.cells.rows, region.cells.columns] = F.adaptive_avg_pool2d(source, size)
    return rearrange(cells, "n c h w -> n (h w) c")


def with_newlines(tokens: Tensor, newline: Tensor, layout: DynImgLayout) -> Tensor:
    """Put the newline token (c,) where the layout's order wants it: (n, images * tokens, c) -> (n, more, c)."""
    videos = tokens.unflatten(1, (-1, layout.images_per_order * layout.num_tokens))
    last = newline.to(tokens).expand(*videos.shape[:2], 1, -1)
    order = torch.tensor(layout.order, device=tokens.device)
    return torch.cat((videos, last), 2)[:, :, order].flatten(1, 2)  # NEWLINE, -1, is the last
