"""Where the object goes that a cell shows, for the cells from which it can be known."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pictures import Pictures
from torch import Tensor

from dynimg_plugin.eval_tasks.motion_qa.scenes import COLOURS, DIRECTIONS, Scene

MOVES = (*DIRECTIONS, "stays")
_COLOUR, _MOVE = ({name: i for i, name in enumerate(names)} for names in (COLOURS, MOVES))


def moves(pictures: Pictures, *, per_clip: int) -> Tensor:
    """(n, cells, MOVES) bool, nothing set where a cell shows no such object.

    Args:
        per_clip: pictures that are seen one after the other. What goes slowly or stays shows from the second one on.
    """
    cells = torch.from_numpy(pictures.cells)
    found = torch.zeros(*cells.shape[:2], len(MOVES), dtype=torch.bool)
    for i, scene in enumerate(pictures.scenes):
        for colour, move in _known(scene, i % per_clip > 0):
            found[i, :, _MOVE[move]] |= cells[i, :, _COLOUR[colour]] > 0
    return found


def _known(scene: Scene, later: bool) -> Iterator[tuple[str, str]]:
    if later:
        yield scene.slow.colour, scene.slow_direction
        yield scene.static.colour, "stays"
    for track in scene.events.get("fast", ()):
        yield track.colour, scene.fast_direction
