"""Videos that are already frames: arrays, tensors, lists of images, folders of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from dynimg_plugin.video.errors import VideoError
from dynimg_plugin.video.frame import Frame
from dynimg_plugin.video.sampling import VideoIndex

PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class FrameVideo:
    """Frames in time order, one tick each. They carry no codec, so none of them is an I-frame.

    Args:
        frames: (T, H, W, 3) or (T, 3, H, W) uint8 array or tensor, or a list of PIL images, arrays or picture paths.
        fps: frames per second; without it a frame lasts one second.
    """

    damaged = False
    path = "direct"

    def __init__(self, frames: Any, *, fps: float = 1.0, name: str = "frames") -> None:
        self.name = name
        self._frames = frames
        if not len(frames):
            raise VideoError(name, "holds no frame")
        if not fps > 0:
            raise VideoError(name, f"fps={fps} is no frame rate; it must be above 0")
        self._seconds = 1 / fps
        self.index = VideoIndex((), 0, len(frames) - 1, 1, self._seconds, "frames")

    @classmethod
    def from_folder(cls, folder: str | Path, *, fps: float = 1.0) -> FrameVideo:
        """Pictures of a folder, in the order of the numbers in their names (frame_2 before frame_10)."""
        paths = sorted((p for p in _listed(folder) if p.suffix.lower() in PICTURES and p.is_file()), key=_natural)
        if not paths:
            raise VideoError(folder, f"this folder holds no pictures; it may hold {', '.join(sorted(PICTURES))}")
        return cls(paths, fps=fps, name=str(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is open; here for the sake of `with`."""

    def between(self, start: float | None, end: float | None) -> VideoIndex:
        """The index of the part from `start` to `end` seconds; ValueError when no frame lies there."""
        return self.index.between(start, end)

    def activity(self) -> list[tuple[int, int]]:
        raise VideoError(self.name, "frames carry no codec to tell motion by; use sampling='auto' or 'uniform'")

    def frames_at(self, times: Sequence[int]) -> list[Frame]:
        """The frames with these indices."""
        found = dict(self.read(times))
        return [found[time] for time in times]

    def read(self, times: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """The same one by one, each index once."""
        for time in sorted(set(times)):
            yield time, Frame(self._pixels(self._frames[time]), time * self._seconds)

    def _pixels(self, frame: Any) -> np.ndarray:
        if isinstance(frame, str | Path):
            try:
                if not Path(frame).is_file():
                    raise FileNotFoundError("no such file")  # a pipe would be waited for
                with Image.open(frame) as picture:
                    return np.array(picture.convert("RGB"))
            except Exception as error:  # Pillow's readers let out what they stumble over: SyntaxError, EOFError, ...
                raise VideoError(self.name, f"{frame} is no picture ({error})") from error
        if isinstance(frame, Image.Image):
            return np.array(frame.convert("RGB"))
        array = np.asarray(frame)
        if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
            array = array.transpose(1, 2, 0)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise VideoError(
                self.name,
                f"a frame is {array.dtype} of shape {array.shape}; allowed: uint8 of shape (H, W, 3) or (3, H, W)",
            )
        return np.require(array, requirements=["C", "W"])


def is_folder(source: str | Path) -> bool:
    """False for what the system does not even look up, e.g. too long a name."""
    try:
        return Path(source).is_dir()
    except OSError:
        return False


def _listed(folder: str | Path) -> list[Path]:
    try:
        return list(Path(folder).iterdir())
    except OSError as error:
        raise VideoError(folder, f"cannot be listed ({error.strerror})") from error


def _natural(path: Path) -> list[tuple[int, str]]:
    """frame_10 -> [(0, "frame_"), (10, "")]: numbers compare as numbers."""
    return [(int(digits or 0), text) for digits, text in re.findall(r"(\d*)(\D*)", path.stem)]
