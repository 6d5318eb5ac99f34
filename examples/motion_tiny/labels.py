"""Dense labels of a DynImg: what lies in each of its patches and pooled cells, read off the scene that was drawn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dynimg_plugin import DynImgLayout
from dynimg_plugin.composition import DynImg
from dynimg_plugin.eval_tasks.motion_qa.scenes import (
    COLOURS,
    FPS,
    HEIGHT,
    SHAPES,
    WIDTH,
    Scene,
    Track,
    _depth,
)
from dynimg_plugin.layout import Region

FINE = 3  # a cell's objects are placed in 3 x 3 parts of it
SAMPLES = 4  # a patch's cover is counted on 4 x 4 points
NUM_COVER = len(COLOURS) + len(SHAPES)
NUM_WORDS = len(COLOURS) + len(SHAPES)
NUM_FACTS = len(COLOURS) * (FINE * FINE + len(SHAPES))
_COLOUR, _SHAPE = ({name: i for i, name in enumerate(names)} for names in (COLOURS, SHAPES))


def shown(
    scene: Scene, dynimg: DynImg, layout: DynImgLayout
) -> Iterator[tuple[Region, list[tuple[Track, float, float]]]]:
    """Of every frame its region and its objects with their centres as shares of the frame, (track, x, y)."""
    for region, frame in zip(layout.regions, dynimg.frames, strict=True):
        number = round(frame.pts_seconds * FPS)
        centres = [(track, track.at(number)) for track in scene.tracks]
        yield region, [(track, c[0] / WIDTH, c[1] / HEIGHT) for track, c in centres if c is not None]


def cover(scene: Scene, dynimg: DynImg, layout: DynImgLayout) -> np.ndarray:
    """(grid * grid, NUM_COVER) float16: share of each patch that each colour and each shape covers."""
    found = np.zeros((layout.grid, layout.grid, NUM_COVER), np.float16)
    for region, tracks in shown(scene, dynimg, layout):
        area = region.patches
        y, x = (np.arange(n * SAMPLES) + 0.5 for n in (area.h, area.w))
        seen = np.full((len(y), len(x)), -1)
        for number, (track, cx, cy) in enumerate(tracks):  # from the back to the front
            dx, dy = (x / len(x) - cx) * WIDTH, (y / len(y) - cy) * HEIGHT
            seen[_depth(track.shape, dx[None], dy[:, None], float(track.radius)) > 0] = number
        for number, (track, _, _) in enumerate(tracks):
            share = (seen == number).reshape(area.h, SAMPLES, area.w, SAMPLES).mean((1, 3))
            found[area.rows, area.columns, _COLOUR[track.colour]] += share
            found[area.rows, area.columns, len(COLOURS) + _SHAPE[track.shape]] += share
    return found.reshape(-1, NUM_COVER)


def cells(scene: Scene, dynimg: DynImg, layout: DynImgLayout) -> np.ndarray:
    """(cells, NUM_WORDS + NUM_FACTS) of 0 and 1: by the objects whose centre lies in a cell.

    Words: which colours, which shapes. Facts: for each colour, where in the cell (3 x 3), and of which shape.
    """
    words = np.zeros((layout.pooled, layout.pooled, NUM_WORDS), np.uint8)
    place = np.zeros((layout.pooled, layout.pooled, len(COLOURS), FINE * FINE), np.uint8)
    shape = np.zeros((layout.pooled, layout.pooled, len(COLOURS), len(SHAPES)), np.uint8)
    for region, tracks in shown(scene, dynimg, layout):
        for track, cx, cy in tracks:
            y, x = (min(max(c, 0.0), 0.9999) * n for c, n in ((cy, region.cells.h), (cx, region.cells.w)))
            at = region.cells.y + int(y), region.cells.x + int(x)
            colour, form = _COLOUR[track.colour], _SHAPE[track.shape]
            words[*at, colour] = words[*at, len(COLOURS) + form] = 1
            place[*at, colour, int(y % 1 * FINE) * FINE + int(x % 1 * FINE)] = 1
            shape[*at, colour, form] = 1
    return np.concatenate([part.reshape(layout.num_tokens, -1) for part in (words, place, shape)], -1)
