"""Paint frames into the layout: video -> DynImgs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dynimg_plugin.config import Aspect, DynImgConfig
from dynimg_plugin.layout import DynImgLayout, Rect
from dynimg_plugin.video import Frame, VideoError, open_video, sample

GREY = 127  # close to 0 after the towers' normalisation
MOST_STRETCH: dict[Aspect, float] = {"stretch": float("inf"), "auto": 2.0, "keep": 1.0}


@dataclass(frozen=True)
class FramePlace:
    """One frame of a DynImg.

    Attributes:
        role: "key" or "prompt".
        t: its slot: 0 for the key frame, ..., -2, -1, 1, 2, ... for prompts in time order.
        pts_seconds: when it is shown, counted from the first frame of the video.
        is_iframe: coded without reference to other frames.
        corrupt: the decoder concealed damage in it.
        canvas: which of the DynImg's images it lies on (always 0 unless fusion="after").
        rectangle: its place there in pixels.
    """

    role: str
    t: int
    pts_seconds: float
    is_iframe: bool
    corrupt: bool
    canvas: int
    rectangle: Rect


@dataclass(frozen=True)
class DynImg:
    """A key frame with its temporal prompts.

    Attributes:
        images: what the vision tower sees, RGB, `canvas_size` pixels square; one, or with fusion="after" one per frame.
        frames: where each frame lies, key frame first.
        record: how the whole video was sampled, the same for all its DynImgs.
    """

    images: tuple[Image.Image, ...]
    frames: tuple[FramePlace, ...]
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def image(self) -> Image.Image:
        """The image that holds the key frame."""
        return self.images[0]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pixels, ready for JSON."""
        return {"frames": [asdict(frame) for frame in self.frames], "record": self.record}


def compose(
    source: Any, config: DynImgConfig | None = None, *, seed: int | None = None, fps: float = 1.0
) -> list[DynImg]:
    """Compose the DynImgs of one video.

    Args:
        source: path of a video or of a folder of pictures, a (T, H, W, 3) uint8 array, or a list of images.
        config: DynImgConfig() when None.
        seed: None picks prompt frames deterministically (evaluation); a number draws them at random (training).
        fps: frames per second of sources without a clock (arrays, lists, folders).

    Raises:
        VideoError: when the source cannot be read.
    """
    config = config or DynImgConfig()
    layout = DynImgLayout.from_config(config)
    video = open_video(source, fps=fps)
    prompts = config.frames_per_image - 1
    try:
        groups = sample(
            video.index, num_images=config.num_images, num_prompts=prompts, policy=config.sampling, seed=seed
        )
    except ValueError as error:
        raise VideoError(video.name, str(error)) from error
    frames = iter(video.frames_at([pick.time for group in groups for pick in group]))
    per_image = [[next(frames) for _ in group] for group in groups]
    record = _record(video, config, [frame for group in per_image for frame in group])
    return [_paint(group, layout, config, record) for group in per_image]


def _record(video: Any, config: DynImgConfig, frames: list[Frame]) -> dict[str, Any]:
    """What was really used: numbers of I-frames, of distinct frames and of damaged ones."""
    return {
        "source": video.name,
        "sampling": config.sampling,
        "index": video.index.kind,
        "iframes_in_video": len(video.index.iframes),
        "frames": len(frames),
        "iframes_used": sum(frame.is_iframe for frame in frames),
        "unique_frames": len(Counter(frame.pts_seconds for frame in frames)),
        "corrupt_frames": sum(frame.corrupt for frame in frames),
        "damaged": video.damaged,
    }


def _paint(group: list[Frame], layout: DynImgLayout, config: DynImgConfig, record: dict[str, Any]) -> DynImg:
    side, patch = config.canvas_size, config.canvas_size // layout.grid
    canvases = torch.full((layout.num_canvases, 3, side, side), GREY, dtype=torch.uint8)
    places = []
    for frame, region in zip(group, layout.regions, strict=True):
        place = region.patches.scaled(patch)
        canvases[region.canvas, :, place.rows, place.columns] = fit(frame.pixels, place.h, place.w, config.aspect)
        role = "prompt" if region.slot else "key"
        places.append(
            FramePlace(role, region.slot, frame.pts_seconds, frame.is_iframe, frame.corrupt, region.canvas, place)
        )
    images = tuple(Image.fromarray(canvas.permute(1, 2, 0).numpy()) for canvas in canvases)
    return DynImg(images, tuple(places), record)


def fit(pixels: np.ndarray, height: int, width: int, aspect: Aspect = "stretch") -> Tensor:
    """(H, W, 3) uint8 -> (3, height, width) uint8, bicubic with antialiasing, letterboxed in grey as `aspect` asks."""
    frame = torch.from_numpy(pixels).permute(2, 0, 1)
    stretch = (frame.shape[2] / frame.shape[1]) / (width / height)  # > 1: the frame is wider than its place
    most = MOST_STRETCH[aspect]
    inner_h = height if stretch <= most else max(1, round(height * most / stretch))
    inner_w = width if stretch >= 1 / most else max(1, round(width * most * stretch))
    resized = TF.resize(frame, [inner_h, inner_w], interpolation=TF.InterpolationMode.BICUBIC, antialias=True)
    if (inner_h, inner_w) == (height, width):
        return resized
    box = torch.full((3, height, width), GREY, dtype=torch.uint8)
    y, x = (height - inner_h) // 2, (width - inner_w) // 2
    box[:, y : y + inner_h, x : x + inner_w] = resized
    return box
