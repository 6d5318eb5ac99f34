"""PyAV's door for reading: index a file without decoding it, then decode the chosen frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame as AVFrame
from av.video.stream import VideoStream
from PIL import Image

from dynimg_plugin.video.errors import VideoError
from dynimg_plugin.video.sampling import VideoIndex


@dataclass(frozen=True)
class Frame:
    """A decoded frame.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright and with square pixels.
        pts_seconds: when it is shown, counted from the first frame of its video.
        is_iframe: coded without reference to other frames.
        corrupt: the decoder found damage and concealed it.
    """

    pixels: np.ndarray
    pts_seconds: float
    is_iframe: bool = False
    corrupt: bool = False


class FileVideo:
    """A video file, any container and codec that PyAV opens.

    Attributes:
        index: its clock and I-frames.
        damaged: packets were unreadable; what could be read is used.

    Raises:
        VideoError: when the file is missing, is no video, or holds no frame that can be decoded.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        self.damaged = False
        if not Path(path).is_file():
            raise VideoError(path, "no such file")
        self.index = self._scan()

    @contextmanager
    def _open(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        try:
            with av.open(self.name) as container:
                streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
                if not streams:
                    raise VideoError(self.name, "has no video stream; give a file with moving pictures")
                streams[0].thread_type = "NONE"  # loaders run side by side; frame threads only add delay and memory
                yield container, streams[0]
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(self.name, f"cannot be read as a video ({error})") from error

    def _packets(self, container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
        try:
            yield from container.demux(stream)
        except av.error.InvalidDataError:  # a file that is cut short ends here
            self.damaged = True

    def _scan(self) -> VideoIndex:
        """Read every packet's header. Files without times (raw H.264) are counted in frames instead."""
        with self._open() as (container, stream):
            packets = [(p.pts, p.is_keyframe, p.is_discard) for p in self._packets(container, stream) if p.size]
            tick = float(stream.time_base or 0)
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            self._pixel_aspect = float(stream.sample_aspect_ratio or 1)
        shown = [(pts, key) for pts, key, discard in packets if pts is not None and not discard]
        self._counted = not tick or 2 * len(shown) < len(packets)
        if self._counted:
            tick, shown = 1 / rate, [(i, key) for i, (_, key, _) in enumerate(packets)]
        if not shown:
            raise VideoError(self.name, "holds no frame; the file may be cut short")
        times = sorted(time for time, _ in shown)
        frame_ticks = max(1, round(1 / (rate * tick)))
        iframes = tuple(sorted(time for time, key in shown if key))
        return VideoIndex(iframes, times[0], times[-1], frame_ticks, tick, "packets")

    def frames_at(self, times: Sequence[int]) -> list[Frame]:
        """The frame shown at each of `times` (in index ticks): the last one that starts no later."""
        found = dict(self._shown_at(sorted(set(times))))
        if not found:
            raise VideoError(self.name, "no frame can be decoded; the file is damaged")
        return [found[time] for time in times]

    def _shown_at(self, wanted: list[int]) -> Iterator[tuple[int, Frame]]:
        """One pass over the file, up to the last wanted time; times past the last frame get the last frame."""
        todo, shown = list(wanted), None
        for now, frame in self._decoded():
            while todo and now > todo[0]:
                yield todo.pop(0), self._finish(*(shown or (now, frame)))
            if not todo:
                return
            shown = now, frame
        if shown is not None:
            yield from ((time, self._finish(*shown)) for time in todo)

    def _decoded(self) -> Iterator[tuple[int, AVFrame]]:
        """Frames in the order they are shown, each with its time; damaged packets are stepped over."""
        count = 0
        with self._open() as (container, stream):
            for packet in self._packets(container, stream):
                try:
                    frames: list[Any] = packet.decode()
                except av.error.InvalidDataError:
                    self.damaged = True
                    continue
                for frame in frames:
                    if self._counted or frame.pts is not None:
                        yield (count if self._counted else frame.pts), frame
                    count += 1

    def _finish(self, time: int, frame: AVFrame) -> Frame:
        """RGB after the file's rotation, with square pixels."""
        pixels = np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90)
        if self._pixel_aspect != 1:
            height, width = pixels.shape[:2]
            upright = frame.rotation % 180 == 0
            size = (
                (round(width * self._pixel_aspect), height) if upright else (width, round(height * self._pixel_aspect))
            )
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
        seconds = (time - self.index.first) * self.index.tick_seconds
        return Frame(np.ascontiguousarray(pixels), seconds, bool(frame.key_frame), bool(frame.is_corrupt))
