"""The one error of the video path."""

from __future__ import annotations


class VideoError(ValueError):
    """A video that cannot be read: `path` (or a short name of the input) and `reason`, in one sentence."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason
