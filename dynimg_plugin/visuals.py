"""What people hand in as a video or a DynImg."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dynimg_plugin.composition import DynImg
from dynimg_plugin.video import Clip
from dynimg_plugin.video.frames import PICTURES


class Visual(NamedTuple):
    """One DynImg on its way into the model: (canvases, 3, H, W) uint8, and the DynImg when it came as one."""

    canvases: Tensor
    source: DynImg | None


def as_tensor(picture: Any) -> Tensor:
    """PIL image or (H, W, 3) / (3, H, W) uint8 array -> (3, H, W) uint8."""
    array = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture)
    if array.dtype != np.uint8 or array.ndim != 3 or 3 not in (array.shape[0], array.shape[2]):
        raise ValueError(
            f"a DynImg is {array.dtype} of shape {array.shape}; allowed: RGB uint8, (H, W, 3) or (3, H, W)"
        )
    return torch.from_numpy(array.copy() if array.shape[0] == 3 else array.transpose(2, 0, 1).copy())


def padded(pixels: Tensor, size: int) -> Tensor:
    """(n, 3, H, W) uint8 at the tower's image size: frames padded right and below by edge copy, never resized.

    What lies below the first W rows, prompts beside a key frame, stays there.
    """
    height, width = pixels.shape[-2:]
    columns = [*range(width), *[width - 1] * (size - width)]
    return pixels[:, :, [*columns, *range(width, height)]][..., columns]


def normalised(pixels: Tensor, image_processor: Any) -> Tensor:
    """(..., 3, H, W) uint8 -> float32, as an image processor of transformers does."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (image_processor.image_mean, image_processor.image_std))
    return (pixels.float() * image_processor.rescale_factor - mean) / std


def open_picture(item: Any) -> Any:
    """The picture itself, when a path was given."""
    return Image.open(item) if isinstance(item, str | Path) else item


def is_picture(item: Any) -> bool:
    """A DynImg, an image, an (H, W, 3) array, or the path of a picture."""
    if isinstance(item, str | Path):
        return Path(item).suffix.lower() in PICTURES
    return isinstance(item, DynImg | Image.Image) or getattr(item, "ndim", 0) == 3


def is_video(item: Any) -> bool:
    """A path, a Clip, bytes or a file, a (T, ...) array, or a list of frames (pictures or their paths)."""
    if isinstance(item, list | tuple) and not isinstance(item, Clip):
        return bool(item) and is_picture(item[0])
    file = isinstance(item, str | Path | Clip | bytes | bytearray) or hasattr(item, "read")
    return file or getattr(item, "ndim", 0) == 4


def per_row(visuals: Any, rows: int, is_one: Callable[[Any], bool]) -> list[list[Any]]:
    """The visuals of each prompt: one of them, a list of them, or None. A single prompt takes a bare list too."""
    if not is_one(visuals) and not isinstance(visuals, list | tuple):
        raise ValueError(f"a {type(visuals).__name__} is neither a video or DynImg nor a list of them")
    entries = [visuals] if is_one(visuals) else list(visuals)
    if rows == 1 and all(map(is_one, entries)):
        entries = [entries]
    if len(entries) != rows:
        raise ValueError(f"{len(entries)} visual(s) came with {rows} prompt(s); give one per prompt, None for none")
    return [[] if entry is None else [entry] if is_one(entry) else list(entry) for entry in entries]
