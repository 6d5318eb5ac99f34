"""An open container: every packet, seek and decoder error of the package passes through here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.packet import Packet
from av.stream import Disposition

from dynimg_plugin.video.errors import VideoError


@dataclass(frozen=True)
class VideoLimits:
    """What one video may cost; past it the video ends in a VideoError.

    Attributes:
        timeout_seconds: wall time from opening to the last frame.
        max_pixels: height x width of a frame.
        max_packets: packets read, counting those read twice.
    """

    timeout_seconds: float = 60.0
    max_pixels: int = 2**26  # 8192 x 8192
    max_packets: int = 10_000_000


@contextmanager
def as_video_errors(name: str) -> Iterator[None]:
    """Turn what PyAV raises for a file that is no video into a VideoError."""
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(name, f"cannot be read as a video ({error})") from error


class Reader:
    """A container and its first video stream.

    Args:
        source: a path or a seekable binary file object.

    Attributes:
        damaged: packets were unreadable and stepped over.
        stream: the video stream.
    """

    def __init__(self, source: Any, name: str, limits: VideoLimits) -> None:
        self.name, self.limits, self.damaged = name, limits, False
        self._source = source
        self._deadline = time.monotonic() + limits.timeout_seconds
        self._packets = 0
        self._container: Any = None
        self.reopen()

    def reopen(self) -> None:
        """Start again at the first packet."""
        self.close()
        with as_video_errors(self.name):
            if not isinstance(self._source, str | Path):
                self._source.seek(0)
            source = str(self._source) if isinstance(self._source, Path) else self._source
            self._container = av.open(source, timeout=self.limits.timeout_seconds)
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            self.close()
            raise VideoError(self.name, "has no video stream; give a file with moving pictures")
        self.stream = streams[0]
        self.stream.thread_type = "NONE"  # loaders run side by side; frame threads only add delay and memory
        self._check_size(self.stream.width, self.stream.height)

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None

    @property
    def format(self) -> str:
        """Names of the container's format, e.g. "mov,mp4,m4a,3gp,3g2,mj2"."""
        return str(self._container.format.name)

    def skip(self, kind: str) -> None:
        """What the decoder leaves out: "DEFAULT" nothing, "NONREF" frames that no other needs, "NONKEY"."""
        self.stream.codec_context.skip_frame = kind

    def seek(self, pts: int, *, backward: bool = True) -> bool:
        """Go to the key packet at or before `pts` (or after it); False when the container cannot."""
        try:
            self._container.seek(pts, stream=self.stream, backward=backward)
        except (av.error.FFmpegError, OSError):  # past the last key packet; pictures and pipes
            return False
        return True

    def packets(self) -> Iterator[Packet]:
        """Packets from here to the end, the last one empty, for the decoder to let go of its frames."""
        packets = self._container.demux(self.stream)
        while True:
            self._check_budget()
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.error.FFmpegError, OSError):  # a file that is cut short ends here
                self.damaged = True
                return
            yield packet

    def next_packet(self) -> Packet | None:
        """The next packet that is not empty."""
        return next((packet for packet in self.packets() if packet.size), None)

    def decode(self, packet: Packet | None) -> list[Any]:
        """Frames that the decoder lets go of; None drains it. A damaged packet gives none."""
        self._check_budget()
        try:
            frames = self.stream.codec_context.decode(packet)
        except av.error.EOFError:
            return []
        except av.error.FFmpegError:
            self.damaged = True
            return []
        for frame in frames:
            self._check_size(frame.width, frame.height)
        return list(frames)

    def _check_budget(self) -> None:
        self._packets += 1
        if self._packets > self.limits.max_packets:
            raise VideoError(self.name, f"has more than max_packets={self.limits.max_packets} packets; raise the limit")
        if time.monotonic() > self._deadline:
            seconds = self.limits.timeout_seconds
            raise VideoError(self.name, f"took longer than timeout_seconds={seconds:g}; raise the limit")

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.limits.max_pixels:
            limit = self.limits.max_pixels
            raise VideoError(self.name, f"{width} x {height} pixels are more than max_pixels={limit}; raise the limit")
