"""From any video to the frames of its DynImgs; PyAV's only door."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dynimg_plugin.video.decode import FileVideo
from dynimg_plugin.video.errors import VideoError
from dynimg_plugin.video.frame import Frame
from dynimg_plugin.video.frames import FrameVideo, is_folder
from dynimg_plugin.video.reader import VideoLimits
from dynimg_plugin.video.sampling import Pick, VideoIndex, sample

__all__ = [
    "Clip",
    "FileVideo",
    "Frame",
    "FrameVideo",
    "Pick",
    "VideoError",
    "VideoIndex",
    "VideoLimits",
    "open_video",
    "sample",
]


class Clip(NamedTuple):
    """Part of a video: from `start` to `end` seconds after its first frame; None leaves a side open."""

    source: Any
    start: float | None = None
    end: float | None = None


def open_video(
    source: Any, *, fps: float = 1.0, limits: VideoLimits | None = None, fast_between: bool = False
) -> FileVideo | FrameVideo:
    """Open a video file, a folder of pictures, or frames in memory; to be used in a `with` block.

    Args:
        source: path of a file or folder; the bytes of a file or a seekable binary file object; (T, H, W, 3) or
            (T, 3, H, W) uint8 array or tensor; list of PIL images, arrays or picture paths.
        fps: frames per second of frames without a clock of their own.
        limits, fast_between: see FileVideo.

    Raises:
        VideoError: with the source and the reason.
    """
    if isinstance(source, str | Path):
        if is_folder(source):
            return FrameVideo.from_folder(source, fps=fps)
        return FileVideo(source, limits=limits, fast_between=fast_between)
    if isinstance(source, bytes | bytearray):
        source = io.BytesIO(source)
    if hasattr(source, "read") and hasattr(source, "seek"):
        name = str(getattr(source, "name", f"<{type(source).__name__}>"))
        return FileVideo(source, limits=limits, fast_between=fast_between, name=name)
    shape = getattr(source, "shape", None)
    if (shape is not None and len(shape) == 4) or (shape is None and isinstance(source, Sequence)):
        return FrameVideo(source, fps=fps)
    raise VideoError(
        type(source).__name__,
        "is no video; allowed: a path, a folder of pictures, bytes or a binary file, a (T, H, W, 3) uint8 array or a "
        "list of images",
    )
