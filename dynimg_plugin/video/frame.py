"""What the video path hands on: one frame, its pixels made only when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Frame:
    """A decoded frame.

    Attributes:
        source: the decoder's frame, or an (H, W, 3) uint8 RGB array.
        pts_seconds: when it is shown, counted from the first frame of its video.
        is_iframe: coded without reference to other frames.
        corrupt: the decoder found damage and concealed it.
        pixel_aspect: width of a stored pixel over its height.
    """

    source: Any
    pts_seconds: float
    is_iframe: bool = False
    corrupt: bool = False
    pixel_aspect: float = 1.0

    @cached_property
    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, upright and with square pixels."""
        if isinstance(self.source, np.ndarray):
            return self.source
        pixels = np.rot90(self.source.to_ndarray(format="rgb24"), k=self._quarter_turns)
        height, width = self.shape
        if pixels.shape[:2] != (height, width):
            pixels = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
        return np.ascontiguousarray(pixels)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of `pixels`."""
        if isinstance(self.source, np.ndarray):
            return self.source.shape[:2]
        height, width = self.source.height, max(1, round(self.source.width * self.pixel_aspect))
        return (width, height) if self._quarter_turns % 2 else (height, width)

    @property
    def _quarter_turns(self) -> int:
        """Counterclockwise; a display matrix may hold any angle."""
        return round(self.source.rotation / 90)

    def scaled(self, height: int, width: int) -> np.ndarray | None:
        """(height, width, 3) straight from the decoder's scaler (bicubic, no antialiasing); None for an array."""
        if isinstance(self.source, np.ndarray):
            return None
        stored = (width, height) if self._quarter_turns % 2 else (height, width)
        scaled = self.source.reformat(width=stored[1], height=stored[0], format="rgb24", interpolation="BICUBIC")
        return np.ascontiguousarray(np.rot90(scaled.to_ndarray(), k=self._quarter_turns))
