"""The arms: how a clip's frames become visual tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dynimg_plugin import DynImgConfig, compose
from dynimg_plugin.layout import DynImgLayout, Rect, Region

from .plan import PROMPTS
from .scenes import FOUR_GROUPS, ONE_GROUP, SIDE, Timing

GRID, PATCH = 4, 16
SHARED: dict[str, Any] = {"sampling": "uniform", "rope_4d": False}
SMALL: dict[str, Any] = {**SHARED, "grid": GRID, "pooled_size": GRID, "patch_size": PATCH}
WIDE: dict[str, Any] = {**SHARED, "grid": 12, "pooled_size": 12, "patch_size": 8, "num_images": 1}
CONFIGS = {  # 4 DynImgs of 4 x 4 cells, or 16 frames of 2 x 2: 64 visual tokens, where nothing else is said
    "none": DynImgConfig(fusion="none", **SMALL),
    "after": DynImgConfig(fusion="after", **SMALL),
    "canvas": DynImgConfig(**SMALL),
    "canvas_apart": DynImgConfig(**SMALL),
    "tokens": DynImgConfig(fusion="tokens", **SMALL),
    "frames_16": DynImgConfig(num_images=16, fusion="none", num_prompts=1, **{**SMALL, "pooled_size": 2}),  # PLLaVA
    "image_grid": DynImgConfig(fusion="none", **SMALL),  # IG-VLM: 4 x 4 of the same 16 frames, see layout_of()
    "prompts_1": DynImgConfig(num_prompts=1, **SMALL),
    "prompts_2": DynImgConfig(num_prompts=2, **SMALL),
    "dynimgs_1": DynImgConfig(num_images=1, **SMALL),  # 16 visual tokens
    "dynimgs_16": DynImgConfig(num_images=16, **SMALL),  # 256
    # one DynImg, whose row of 12 cells takes all the paper's numbers of prompts: 144
    **{arm: DynImgConfig(num_prompts=number, **WIDE) for number, arm in PROMPTS.items()},
}


def timing_of(arm: str) -> Timing:
    """When things happen in the clips that an arm is shown."""
    return ONE_GROUP if arm in PROMPTS.values() else FOUR_GROUPS


def layout_of(arm: str) -> DynImgLayout:
    """The layout of one of the arm's images; "image_grid" has one of its own, 2 x 2 frames on every image."""
    if arm != "image_grid":
        return DynImgLayout.from_config(CONFIGS[arm])
    quarters = [Rect(2 * row, 2 * column, 2, 2) for row in range(2) for column in range(2)]
    return DynImgLayout(GRID, GRID, tuple(Region(0, i, quarter, quarter) for i, quarter in enumerate(quarters)))


@cache
def frame_numbers(arm: str) -> np.ndarray:
    """Which frames compose() takes, (images, frames of an image), key frame first."""
    if arm == "image_grid":
        return frame_numbers("frames_16").reshape(4, 4)
    dynimgs = compose(np.zeros((timing_of(arm).frames, SIDE, SIDE, 3), np.uint8), CONFIGS[arm])
    return np.array([[round(frame.pts_seconds) for frame in dynimg.frames] for dynimg in dynimgs])


def paint(frames: np.ndarray, arm: str) -> Tensor:
    """compose() for many clips at once: (n, frames, 64, 64, 3) uint8 -> (n, images * canvases, 3, H, W) uint8."""
    layout, numbers, patch = layout_of(arm), frame_numbers(arm), CONFIGS[arm].patch_size
    pixels = torch.from_numpy(frames).permute(0, 1, 4, 2, 3)
    size = (layout.rows * patch, layout.grid * patch)
    out = torch.empty(len(frames), len(numbers), layout.num_canvases, 3, *size, dtype=torch.uint8)
    for index, region in enumerate(layout.regions):
        place = region.patches.scaled(patch)
        shown = pixels[:, numbers[:, index]].flatten(0, 1)
        scaled = TF.resize(shown, [place.h, place.w], interpolation=TF.InterpolationMode.BICUBIC, antialias=True)
        out[:, :, region.canvas, :, place.rows, place.columns] = scaled.unflatten(0, (len(frames), -1))
    return out.flatten(1, 2)


@contextmanager
def attention_of(arm: str, tower: Any) -> Iterator[None]:
    """Meanwhile, in the arm "canvas_apart", key frame and row of prompts are masked from one another in the tower."""
    if arm != "canvas_apart":
        yield
        return
    key = layout_of(arm).regions[0].patches
    upper = (torch.arange(GRID**2) // GRID < key.h).to(tower.device)
    mask = torch.where(upper[:, None] == upper, 0.0, torch.finfo(torch.float32).min)[None, None]

    def masked(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args[:1], {**kwargs, "attention_mask": mask}

    modules = [module for module in tower.modules() if type(module).__name__ == "SiglipAttention"]
    handles = [module.register_forward_pre_hook(masked, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
