"""Paint frames into the layout: video -> DynImgs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from dynimg_plugin.config import Aspect, DynImgConfig, Resize
from dynimg_plugin.layout import DynImgLayout, Rect
from dynimg_plugin.video import Clip, FileVideo, Frame, FrameVideo, VideoError, VideoLimits, open_video, sample

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
        images: what the vision tower sees, RGB, `canvas_size` pixels square; one, or with fusion="after" one per frame;
            with fusion="tokens" taller by the row of prompts.
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
    source: Any,
    config: DynImgConfig | None = None,
    *,
    seed: int | None = None,
    fps: float = 1.0,
    limits: VideoLimits | None = None,
    seconds: dict[str, float] | None = None,
) -> list[DynImg]:
    """Compose the DynImgs of one video.

    Args:
        source: path of a video or of a folder of pictures, a video's bytes or a seekable binary file, a (T, H, W, 3)
            uint8 array, a list of images; or a Clip of one of them.
        config: DynImgConfig() when None.
        seed: None picks prompt frames deterministically (evaluation); a number draws them at random (training).
        fps: frames per second of sources without a clock (arrays, lists, folders).
        limits: what reading the video may cost; VideoLimits() when None.
        seconds: a dict that gets "decode" (opening, finding and decoding frames) and "compose" (their conversion to
            RGB, scaling and painting).

    Raises:
        VideoError: when the source cannot be read within the limits.
    """
    began, painting = perf_counter(), 0.0
    config = config or DynImgConfig()
    clip = source if isinstance(source, Clip) else Clip(source)
    with open_video(clip.source, fps=fps, limits=limits, fast_between=config.fast_between) as video:
        try:
            index = video.between(clip.start, clip.end)
            groups = sample(
                index,
                num_images=config.num_images,
                num_prompts=config.frames_per_image - 1,
                policy=config.sampling,
                seed=seed,
                activity=video.activity() if config.sampling == "motion" else (),
            )
        except ValueError as error:
            raise error if isinstance(error, VideoError) else VideoError(video.name, str(error)) from error
        canvases = Canvases(config)
        times = [[pick.time for pick in group] for group in groups]
        for time, frame in video.read(time for group in times for time in group):
            arrived = perf_counter()
            for image, group in enumerate(times):
                for region in (i for i, wanted in enumerate(group) if wanted == time):
                    canvases.paint(frame, image, region)
            painting += perf_counter() - arrived
        if seconds is not None:
            seconds |= {"decode": perf_counter() - began - painting, "compose": painting}
        return canvases.dynimgs(lambda places: _record(video, config, places, len(index.iframes)))


class Canvases:
    """The pictures of one video while its frames arrive, in any order."""

    def __init__(self, config: DynImgConfig) -> None:
        self.config, self.layout = config, DynImgLayout.from_config(config)
        self.patch = config.canvas_size // self.layout.grid
        size = (self.layout.rows * self.patch, config.canvas_size)
        shape = (config.num_images, self.layout.num_canvases, *size, 3)
        self.pixels = np.full(shape, GREY, np.uint8)  # numpy copies small blocks faster than torch with its threads
        self.places: dict[tuple[int, int], FramePlace] = {}

    def paint(self, frame: Frame, image: int, region: int) -> None:
        """Put `frame` into the `region`-th place of the `image`-th DynImg."""
        where = self.layout.regions[region]
        place = where.patches.scaled(self.patch)
        pixels = fit(frame, place.h, place.w, self.config.aspect, self.config.resize)
        self.pixels[image, where.canvas, place.rows, place.columns] = pixels.numpy().transpose(1, 2, 0)
        role = "prompt" if where.slot else "key"
        self.places[image, region] = FramePlace(
            role, where.slot, frame.pts_seconds, frame.is_iframe, frame.corrupt, where.canvas, place
        )

    def dynimgs(self, record: Callable[[list[FramePlace]], dict[str, Any]]) -> list[DynImg]:
        whole = record(list(self.places.values()))
        return [
            DynImg(
                tuple(Image.fromarray(canvas) for canvas in canvases),
                tuple(self.places[image, region] for region in range(len(self.layout.regions))),
                whole,
            )
            for image, canvases in enumerate(self.pixels)
        ]


def _record(
    video: FileVideo | FrameVideo, config: DynImgConfig, frames: list[FramePlace], iframes: int
) -> dict[str, Any]:
    """What was really used: numbers of I-frames (of a sparse index, those in it), of distinct and of damaged frames."""
    return {
        "source": video.name,
        "sampling": config.sampling,
        "index": video.index.kind,
        "path": video.path,
        "iframes_in_video": iframes,
        "frames": len(frames),
        "iframes_used": len({frame.pts_seconds for frame in frames if frame.is_iframe}),
        "unique_frames": len({frame.pts_seconds for frame in frames}),
        "corrupt_frames": sum(frame.corrupt for frame in frames),
        "damaged": video.damaged,
    }


def fit(frame: Frame, height: int, width: int, aspect: Aspect = "stretch", resize: Resize = "exact") -> Tensor:
    """A frame as (3, height, width) uint8, letterboxed in grey as `aspect` asks."""
    stretch = (frame.shape[1] / frame.shape[0]) / (width / height)  # > 1: the frame is wider than its place
    most = MOST_STRETCH[aspect]
    inner_h = height if stretch <= most else max(1, round(height * most / stretch))
    inner_w = width if stretch >= 1 / most else max(1, round(width * most * stretch))
    resized = _resized(frame, inner_h, inner_w, resize)
    if (inner_h, inner_w) == (height, width):
        return resized
    box = torch.full((3, height, width), GREY, dtype=torch.uint8)
    y, x = (height - inner_h) // 2, (width - inner_w) // 2
    box[:, y : y + inner_h, x : x + inner_w] = resized
    return box


def _resized(frame: Frame, height: int, width: int, resize: Resize) -> Tensor:
    scaled = frame.scaled(height, width) if resize == "fast" else None
    if scaled is not None:
        return torch.from_numpy(scaled).permute(2, 0, 1)
    pixels = torch.from_numpy(frame.pixels).permute(2, 0, 1)
    return TF.resize(pixels, [height, width], interpolation=TF.InterpolationMode.BICUBIC, antialias=True)
