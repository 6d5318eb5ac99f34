"""The DynImgs of many clips with their labels, and pixels as the tower takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from labels import labels
from torch import Tensor

from dynimg_plugin import DynImgLayout, DynImgProcessor
from dynimg_plugin.composition import DynImg
from dynimg_plugin.eval_tasks.motion_qa.scenes import FPS, Scene, make_scene


@dataclass(frozen=True)
class Pictures:
    """Single DynImgs: pixels (n, 3, H, W) uint8, covers (n, patches, .), cells (n, cells, .), scene, frame numbers."""

    processor: DynImgProcessor
    pixels: np.ndarray
    covers: np.ndarray
    cells: np.ndarray
    scenes: list[Scene]
    frames: list[tuple[int, ...]]

    @property
    def layout(self) -> DynImgLayout:
        return self.processor.layout

    def values(self, chosen: np.ndarray) -> Tensor:
        """(n, 3, H, W) float32: rescaled and normalised as the processor does."""
        image = self.processor.image_processor
        mean, std = (torch.tensor(value).view(3, 1, 1) for value in (image.image_mean, image.image_std))
        return (torch.from_numpy(self.pixels[chosen]).float() * image.rescale_factor - mean) / std


def compose_all(processor: DynImgProcessor, clips: Sequence[tuple[int, Path]]) -> Pictures:
    """All DynImgs of the clips (seed, file), composed as in evaluation."""
    made: list[tuple[Scene, DynImg]] = []
    for seed, path in clips:
        scene = make_scene(seed)
        made += [(scene, dynimg) for dynimg in processor.compose(path)]
    covers, cells = zip(*(labels(*pair, processor.layout) for pair in made), strict=True)
    return Pictures(
        processor,
        np.stack([np.asarray(dynimg.image).transpose(2, 0, 1) for _, dynimg in made]),
        np.stack(covers),
        np.stack(cells),
        [scene for scene, _ in made],
        [tuple(round(frame.pts_seconds * FPS) for frame in dynimg.frames) for _, dynimg in made],
    )
