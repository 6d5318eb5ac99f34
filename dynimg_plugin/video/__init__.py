"""From any video to the frames of its DynImgs; PyAV's only door."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynimg_plugin.video.decode import FileVideo, Frame
from dynimg_plugin.video.errors import VideoError
from dynimg_plugin.video.frames import FrameVideo
from dynimg_plugin.video.sampling import Pick, VideoIndex, sample

__all__ = ["FileVideo", "Frame", "FrameVideo", "Pick", "VideoError", "VideoIndex", "open_video", "sample"]


def open_video(source: Any, *, fps: float = 1.0) -> FileVideo | FrameVideo:
    """Open a video file, a folder of pictures, or frames in memory.

    Args:
        source: path of a file or folder; (T, H, W, 3) or (T, 3, H, W) uint8 array or tensor; list of PIL images,
            arrays or picture paths.
        fps: frames per second of frames without a clock of their own.

    Raises:
        VideoError: with the source and the reason.
    """
    if isinstance(source, FileVideo | FrameVideo):
        return source
    if isinstance(source, str | Path):
        return FrameVideo.from_folder(source, fps=fps) if Path(source).is_dir() else FileVideo(source)
    shape = getattr(source, "shape", None)
    if (shape is not None and len(shape) == 4) or (shape is None and isinstance(source, Sequence)):
        return FrameVideo(source, fps=fps)
    raise VideoError(
        type(source).__name__,
        "is no video; allowed: a path, a folder of pictures, a (T, H, W, 3) uint8 array or a list of images",
    )
