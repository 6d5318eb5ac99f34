"""The one error of the video path."""

from __future__ import annotations


class VideoError(ValueError):
    """A video that cannot be read: `path` (or a short name of the input) and `reason`, in one sentence."""

    def __init__(self, path: object, reason: str = "") -> None:
        super().__init__(str(path), reason)  # both are arguments, so that it survives pickling between processes
        self.path = str(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.reason else self.path
