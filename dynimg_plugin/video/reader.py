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

PLAYLISTS = {"hls", "concat", "dash", "imf", "sdp"}  # formats that name other files
# Nothing but the file itself is opened: no network, no numbered pictures for a name like "%03d.png".
THIS_FILE = {"protocol_whitelist": "file", "pattern_type": "none"}


@dataclass(frozen=True)
class VideoLimits:
    """What one video may cost; past it the video ends in a VideoError.

    Attributes:
        timeout_seconds: wall time from opening to the last frame.
        max_pixels: height x width of a frame, as stored and as shown with square pixels.
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
    """A container and its first video stream; `reopen` opens it.

    Args:
        source: a path or a seekable binary file object.

    Attributes:
        damaged: packets were unreadable or incomplete.
        stream: the video stream.
        pixel_aspect: width of one of its pixels over the height.
    """

    def __init__(self, source: Any, name: str, limits: VideoLimits) -> None:
        self.name, self.limits, self.damaged = name, limits, False
        self._source = source
        self._deadline = time.monotonic() + limits.timeout_seconds
        self._packets = 0
        self._container: Any = None

    def reopen(self) -> None:
        """Start again at the first packet."""
        self.close()
        self._check_time()
        with as_video_errors(self.name):
            self._container = self._opened()
        if PLAYLISTS & set(self.format.split(",")):
            raise VideoError(self.name, "is a playlist; give the video that it names")
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise VideoError(self.name, "has no video stream; give a file with moving pictures")
        self.stream = streams[0]
        if self.stream.codec_context is None:
            raise VideoError(self.name, "has a video stream that this PyAV has no decoder for")
        self.stream.thread_type = "NONE"  # loaders run side by side; frame threads only add delay and memory
        self.pixel_aspect = float(self.stream.sample_aspect_ratio or 1)
        self._check_size(self.stream.width, self.stream.height)

    def _opened(self) -> Any:
        source = self._source
        if isinstance(source, str | Path):
            source = f"file:{source}"  # the name of a file may look like another protocol: "12:30.mp4"
        else:
            source.seek(0)
        try:
            return av.open(
                source, timeout=self.limits.timeout_seconds, metadata_errors="replace", container_options=THIS_FILE
            )
        except av.error.FFmpegError:  # any of them when FFmpeg is interrupted
            self._check_time()
            raise

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
            self._check_time()
            self._packets += 1
            if self._packets > self.limits.max_packets:
                limit = self.limits.max_packets
                raise VideoError(self.name, f"has more than max_packets={limit} packets to read; raise the limit")
            try:
                packet = next(packets)
            except StopIteration:
                self._check_time()  # an interrupted read looks like the end
                return
            except (av.error.FFmpegError, OSError, IndexError):  # cut short; IndexError: PyAV met an unannounced stream
                self._check_time()
                self.damaged = True
                return
            self.damaged |= packet.is_corrupt
            yield packet

    def next_packet(self) -> Packet | None:
        """The next packet that is not empty."""
        return next((packet for packet in self.packets() if packet.size), None)

    def decode(self, packet: Packet | None) -> list[Any]:
        """Frames that the decoder lets go of; None drains it. A damaged packet gives none."""
        self._check_time()
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

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            seconds = self.limits.timeout_seconds
            raise VideoError(self.name, f"took longer than timeout_seconds={seconds:g}; raise the limit")

    def _check_size(self, width: int, height: int) -> None:
        if width * height * max(1, self.pixel_aspect) > self.limits.max_pixels:
            limit = self.limits.max_pixels
            raise VideoError(self.name, f"{width} x {height} pixels are more than max_pixels={limit}; raise the limit")
