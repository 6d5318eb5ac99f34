"""DynImgLayout: which rectangle of the patch grid, and of the pooled grid, belongs to which frame.

Picture, coordinates, pooling and preview all read the same layout, so they cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from dynimg_plugin.config import DynImgConfig, Fusion, Newline

NEWLINE = -1


@dataclass(frozen=True)
class Rect:
    """Rows [y, y + h) and columns [x, x + w)."""

    y: int
    x: int
    h: int
    w: int

    @property
    def rows(self) -> slice:
        return slice(self.y, self.y + self.h)

    @property
    def columns(self) -> slice:
        return slice(self.x, self.x + self.w)

    def scaled(self, factor: int) -> Rect:
        """The same rectangle in units `factor` times finer, e.g. patches -> pixels."""
        return Rect(self.y * factor, self.x * factor, self.h * factor, self.w * factor)


@dataclass(frozen=True)
class Region:
    """One frame's place: on `canvas` it covers `patches`; of the pooled grid it owns `cells`; slot 0 is the key."""

    canvas: int
    slot: int
    patches: Rect
    cells: Rect


@dataclass(frozen=True)
class DynImgLayout:
    """The regions of one DynImg, key frame first, then the prompts in time order.

    27 x 27 patches, 4 prompts:                 12 x 12 pooled cells:

        +---------------------------+               +------------+
        |        key 20 x 27        |               |  key 9x12  |
        +------+------+-----+-------+               +--+--+--+---+
        | -2   | -1   | 1   | 2     |  7 rows       |-2|-1| 1| 2 |  3 x 3 each
        +------+------+-----+-------+               +--+--+--+---+
          7      7      6     7

    With fusion="tokens" the key frame fills all 27 x 27 patches and the row lies below them, in patch rows 27 to 33.
    """

    grid: int
    pooled: int
    regions: tuple[Region, ...]
    plain: bool = False
    newline: Newline = "auto"
    images_per_video: int = 1

    @classmethod
    def from_config(cls, config: DynImgConfig) -> Self:
        """The layout of `config`; a grid of 27 is assumed when the config names none."""
        grid, pooled = config.grid or 27, config.pooled_size
        if grid < pooled:
            raise ValueError(
                f"the vision tower has {grid} x {grid} patches, too few to pool to {pooled} x {pooled} cells; "
                f"choose pooled_size <= {grid}"
            )
        if config.fusion == "none":
            regions = [Region(0, 0, Rect(0, 0, grid, grid), Rect(0, 0, pooled, pooled))]
        else:
            regions = _regions_with_prompts(grid, pooled, config.num_prompts, config.fusion)
        return cls(grid, pooled, tuple(regions), config.pool == "plain", config.newline, config.num_images)

    @property
    def num_canvases(self) -> int:
        """Images that the vision tower encodes for one DynImg."""
        return 1 + max(region.canvas for region in self.regions)

    @property
    def rows(self) -> int:
        """Patch rows of a canvas: the tower's own grid, and with fusion="tokens" the prompts' below it."""
        return max(region.patches.y + region.patches.h for region in self.regions)

    @property
    def num_tokens(self) -> int:
        return self.pooled**2

    @property
    def images_per_order(self) -> int:
        """DynImgs after which `order` begins anew."""
        return self.images_per_video if self.newline == "one_token" else 1

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The tokens of so many DynImgs as the language model reads them: numbers of cells, and NEWLINE between.

        Two rows of two cells: "grid" 0 1 n 2 3 n, "frame" 0 1 2 3 n.
        """
        cells = range(self.images_per_order * self.num_tokens)
        if self.newline in ("auto", "no_token"):
            return tuple(cells)
        step = self.pooled if self.newline == "grid" else len(cells)
        return tuple(token for i in cells for token in ((i, NEWLINE) if (i + 1) % step == 0 else (i,)))

    @property
    def slots(self) -> tuple[int, ...]:
        return tuple(region.slot for region in self.regions)

    @cached_property
    def pooling_regions(self) -> tuple[Region, ...]:
        """What is averaged together: each frame apart, or with plain pooling the whole of a shared canvas."""
        if not self.plain or self.num_canvases > 1 or self.rows > self.grid:
            return self.regions
        return (Region(0, 0, Rect(0, 0, self.grid, self.grid), Rect(0, 0, self.pooled, self.pooled)),)


def prompt_slots(count: int) -> list[int]:
    """Slots of `count` prompts around the key frame at 0: 4 -> [-2, -1, 1, 2]; odd counts put one more after it."""
    earlier = count // 2
    return [*range(-earlier, 0), *range(1, count - earlier + 1)]


def _round_half_up(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)


def _regions_with_prompts(grid: int, pooled: int, count: int, fusion: Fusion) -> list[Region]:
    """Key frame on top and `count` prompts in one row below; with "after" every frame fills a canvas of its own."""
    cell_rows = math.ceil(pooled / (count + 1))
    if cell_rows == pooled:
        raise ValueError(f"pooled_size={pooled} has no row for the key frame above its prompts; choose at least 2")
    patch_rows = max(cell_rows, _round_half_up(grid * cell_rows, pooled))
    borders = [_round_half_up(i * grid, count) for i in range(count + 1)]
    width = pooled // count
    top = grid - patch_rows if fusion == "canvas" else grid  # the key frame gives patches away in "canvas" alone
    key = Rect(0, 0, top, grid)
    regions = [Region(0, 0, key, Rect(0, 0, pooled - cell_rows, pooled))]
    for i, slot in enumerate(prompt_slots(count)):
        patches = Rect(top, borders[i], patch_rows, borders[i + 1] - borders[i])
        cells = Rect(pooled - cell_rows, i * width, cell_rows, width)
        regions.append(Region(i + 1, slot, key, cells) if fusion == "after" else Region(0, slot, patches, cells))
    return regions
