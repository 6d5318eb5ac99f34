"""What lies in each patch and each pooled cell of a DynImg, read off the scene that was drawn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dynimg_plugin import DynImgLayout
from dynimg_plugin.composition import DynImg
from dynimg_plugin.eval_tasks.motion_qa.scenes import COLOURS, FPS, HEIGHT, SHAPES, WIDTH, Scene, Track, _depth
from dynimg_plugin.layout import Region

SAMPLES = 4  # a patch's cover is counted on 4 x 4 points
FULL = 0.4  # an object is in the cell that holds its centre and in those that it covers by more than this
NUM_COVER = len(COLOURS) + len(SHAPES)
NUM_WORDS = NUM_COVER
NUM_FACTS = len(COLOURS) * len(SHAPES)
_COLOUR, _SHAPE = ({name: i for i, name in enumerate(names)} for names in (COLOURS, SHAPES))


def shown(
    scene: Scene, dynimg: DynImg, layout: DynImgLayout
) -> Iterator[tuple[Region, list[tuple[Track, float, float]]]]:
    """Of every frame its region and its objects with their centres as shares of the frame, (track, x, y)."""
    for region, frame in zip(layout.regions, dynimg.frames, strict=True):
        number = round(frame.pts_seconds * FPS)
        centres = [(track, track.at(number)) for track in scene.tracks]
        yield region, [(track, c[0] / WIDTH, c[1] / HEIGHT) for track, c in centres if c is not None]


def labels(scene: Scene, dynimg: DynImg, layout: DynImgLayout) -> tuple[np.ndarray, np.ndarray]:
    """Of every patch and of every cell what it shows.

    Returns:
        (patches, NUM_COVER) float16: share that each colour and each shape covers;
        (cells, NUM_WORDS + NUM_FACTS) uint8 of 0 and 1: which colours, which shapes; which shape of which colour.
    """
    cover = np.zeros((layout.grid, layout.grid, NUM_COVER), np.float16)
    cells = np.zeros((layout.pooled, layout.pooled, NUM_WORDS + NUM_FACTS), np.uint8)
    for region, tracks in shown(scene, dynimg, layout):
        area, into = region.patches, region.cells
        seen = _front_objects(tracks, area.h * SAMPLES, area.w * SAMPLES)
        for number, (track, x, y) in enumerate(tracks):
            share = (seen == number).reshape(area.h, SAMPLES, area.w, SAMPLES).mean((1, 3))
            colour, shape = _COLOUR[track.colour], _SHAPE[track.shape]
            for column in (colour, len(COLOURS) + shape):
                cover[area.rows, area.columns, column] += share
            held = share.reshape(into.h, area.h // into.h, into.w, area.w // into.w).mean((1, 3)) > FULL
            held[int(min(max(y, 0.0), 0.9999) * into.h), int(min(max(x, 0.0), 0.9999) * into.w)] = True
            for column in (colour, len(COLOURS) + shape, NUM_WORDS + colour * len(SHAPES) + shape):
                cells[into.rows, into.columns, column] |= held
    return cover.reshape(-1, NUM_COVER), cells.reshape(layout.num_tokens, -1)


def _front_objects(tracks: list[tuple[Track, float, float]], height: int, width: int) -> np.ndarray:
    """(height, width): the number of the object that lies in front at each point of a frame, -1 for the background."""
    y, x = ((np.arange(n) + 0.5) / n for n in (height, width))
    seen = np.full((height, width), -1)
    for number, (track, cx, cy) in enumerate(tracks):  # from the back to the front
        dx, dy = (x - cx) * WIDTH, (y - cy) * HEIGHT
        seen[_depth(track.shape, dx[None], dy[:, None], float(track.radius)) > 0] = number
    return seen
