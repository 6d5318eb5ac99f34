"""Decode exactly the chosen frames: one seek per group of pictures, one pass where seeking cannot be trusted."""

from __future__ import annotations

import bisect
import io
import stat
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from dynimg_plugin.video.errors import VideoError
from dynimg_plugin.video.frame import Frame
from dynimg_plugin.video.index import activity, build_index, refine
from dynimg_plugin.video.reader import Reader, VideoLimits, as_video_errors
from dynimg_plugin.video.sampling import VideoIndex

FAR = 2_000  # packets after a seek without the wanted key packet


class FileVideo:
    """A video file, any container and codec that PyAV opens; to be closed, or used in a `with` block.

    Args:
        source: a path, or a seekable binary file object.
        limits: what it may cost.
        fast_between: leave out frames that no other frame needs while walking to an in-between frame; the frame shown
            may then be one of its neighbours.

    Attributes:
        index: its clock and I-frames; of long files a sparse selection of them.
        path: "seek", or "sequential" once frames were read in one pass.

    Raises:
        VideoError: when the file is missing, is no video, or holds no frame that can be decoded.
    """

    def __init__(
        self, source: Any, *, limits: VideoLimits | None = None, fast_between: bool = False, name: str | None = None
    ) -> None:
        self.name = name or str(source)
        _check_source(source, self.name)
        self.path = "seek"
        self._fast_between = fast_between
        self._reader = Reader(source, self.name, limits or VideoLimits())
        try:
            with as_video_errors(self.name):
                self._reader.reopen()
                self.index = build_index(self._reader)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()

    @property
    def damaged(self) -> bool:
        """Packets were unreadable; what could be read is used."""
        return self._reader.damaged

    def between(self, start: float | None, end: float | None) -> VideoIndex:
        """The index of the part from `start` to `end` seconds; ValueError when no frame lies there."""
        part = self.index.between(start, end)
        if part.kind != "sparse" or (start is None and end is None):
            return part
        with as_video_errors(self.name):
            return refine(self._reader, part)

    def activity(self) -> list[tuple[int, int]]:
        """(time, bytes) of the frames between the I-frames: the codec's own measure of change."""
        with as_video_errors(self.name):
            return activity(self._reader, self.index.kind == "count")

    def frames_at(self, times: Sequence[int]) -> list[Frame]:
        """The frame shown at each of `times` (in index ticks): the last one that starts no later."""
        found = dict(self.read(times))
        return [found[time] for time in times]

    def read(self, times: Iterable[int]) -> Iterator[tuple[int, Frame]]:
        """The same one by one, each time once, in the order of decoding, so that only one frame need be in memory."""
        missing = sorted(set(times))
        with as_video_errors(self.name):
            if self.index.kind in ("hop", "sparse"):
                for time, frame in self._by_seeking(list(missing)):
                    missing.remove(time)
                    yield time, self._frame(frame.pts, frame)
            if missing:
                self.path = "sequential"
                yield from self._in_one_pass(missing)

    def _by_seeking(self, wanted: list[int]) -> Iterator[tuple[int, Any]]:
        """Frames that a seek leads to beyond doubt; the others are left out."""
        keys, sparse = self.index.iframes, self.index.kind == "sparse"

        def group(time: int) -> tuple[int, int | None]:
            key = keys[max(0, bisect.bisect_right(keys, time) - 1)] if keys else self.index.first
            return key, time if sparse else None  # between the keys of a sparse index lie others: seek for each time

        for (key, alone), times in groupby(wanted, key=group):
            todo = list(times)
            start = min(key, todo[0])
            if not self._reader.seek(start if alone is None else alone):
                return
            yield from self._one_packet(key) if todo == [key] else self._walk(todo, start)

    def _one_packet(self, key: int) -> Iterator[tuple[int, Any]]:
        """An I-frame needs its own packet alone; leading packets of an open group of pictures are passed over."""
        self._reader.skip("DEFAULT")
        for count, packet in enumerate(self._reader.packets()):
            if packet.pts == key and packet.size:
                frames = [*self._reader.decode(packet), *self._reader.decode(None)]
                yield from ((key, frame) for frame in frames[:1] if frame.pts == key)
                return
            if count > FAR:
                return

    def _walk(self, todo: list[int], start: int) -> Iterator[tuple[int, Any]]:
        """Decode forward until the last of `todo`; stop where the frame at `start` does not come out of the decoder."""
        self._reader.skip("NONREF" if self._fast_between else "DEFAULT")
        shown = None
        for packet in self._reader.packets():
            for frame in self._reader.decode(packet if packet.size else None):
                while todo and frame.pts is not None and frame.pts >= todo[0]:
                    best = frame if frame.pts == todo[0] else shown
                    if best is None or best.pts < start:
                        return
                    yield todo.pop(0), best
                if not todo:
                    return
                shown = frame if frame.pts is not None else shown
        if shown is not None and shown.pts >= start:
            yield from ((time, shown) for time in todo)

    def _in_one_pass(self, missing: list[int]) -> Iterator[tuple[int, Frame]]:
        """From the first packet to the last missing time; times past the last frame get the last frame."""
        self._reader.reopen()
        todo, shown = list(missing), None
        for now, frame in self._decoded():
            while todo and now > todo[0]:
                yield todo.pop(0), self._frame(*(shown or (now, frame)))
            if not todo:
                return
            shown = now, frame
        if shown is None:
            raise VideoError(self.name, "no frame can be decoded; the file is damaged")
        for time in todo:
            yield time, self._frame(*shown)

    def _decoded(self) -> Iterator[tuple[int, Any]]:
        """All frames in the order they are shown, each with its time."""
        counted, count = self.index.kind == "count", 0
        for packet in self._reader.packets():
            for frame in self._reader.decode(packet if packet.size else None):
                if counted or frame.pts is not None:
                    yield (count if counted else frame.pts), frame
                count += 1

    def _frame(self, time: int, frame: Any) -> Frame:
        seconds = (time - self.index.first) * self.index.tick_seconds
        return Frame(frame, seconds, bool(frame.key_frame), bool(frame.is_corrupt), self._reader.pixel_aspect)


def _check_source(source: Any, name: str) -> None:
    """Refuse what is no regular file before FFmpeg opens it: a pipe or a device would keep it waiting for ever."""
    if isinstance(source, str | Path):
        try:
            kind = Path(source).stat().st_mode
        except FileNotFoundError as error:
            raise VideoError(name, "no such file") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            raise VideoError(name, f"cannot be opened ({getattr(error, 'strerror', None) or error})") from error
        if not stat.S_ISREG(kind):
            raise VideoError(name, "is no regular file; a video must be a file that can be read twice")
    elif isinstance(source, io.TextIOBase):
        raise VideoError(name, 'is opened as text; open it with mode "rb"')
    elif getattr(source, "closed", False):
        raise VideoError(name, "is closed")
    elif not getattr(source, "seekable", lambda: True)():
        raise VideoError(name, "cannot seek; write it to a file first, or give its bytes")
