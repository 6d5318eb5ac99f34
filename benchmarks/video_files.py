"""The files of benchmarks/video.py: drawn, coded with libx264, long ones from a repeated segment."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

FPS, SEGMENT_SECONDS = 30, 30
SIZES = {"360p": (640, 360), "1080p": (1920, 1080)}


@dataclass(frozen=True)
class Case:
    """One file: size by name, distance of I-frames, seconds."""

    size: str
    gop: int
    seconds: int

    @property
    def name(self) -> str:
        return f"{self.size}_gop{self.gop}_{self.seconds}s"


def frames(size: tuple[int, int], count: int) -> Iterator[np.ndarray]:
    """A textured background that drifts, with noise and three moving boxes: (H, W, 3) uint8."""
    width, height = size
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 256, (height // 8 + 1, width // 4 + 1, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    grain = rng.integers(-6, 7, (4, height, width, 1), dtype=np.int16)
    for i in range(count):
        at = i % width
        frame = texture[:height, at : at + width].astype(np.int16) + grain[i % 4]
        for k, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
            y, x = height * (k + 1) // 5, (i * (3 + 2 * k) * width // 640) % (width - width // 8)
            frame[y : y + height // 8, x : x + width // 8] = colour
        yield np.clip(frame, 0, 255).astype(np.uint8)


def encode(path: Path, case: Case, seconds: int) -> None:
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "sc_threshold": "0", "crf": "28"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height = SIZES[case.size]
        stream.pix_fmt, stream.gop_size = "yuv420p", case.gop
        for frame in frames(SIZES[case.size], FPS * seconds):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def repeat(segment: Path, path: Path, times: int) -> None:
    """Copy the packets of a segment several times, one after the other, without coding them again."""
    with av.open(str(segment)) as source, av.open(str(path), "w") as target:
        read = source.streams.video[0]
        write = target.add_stream_from_template(read)
        packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in source.demux(read) if p.size]
        length = round(SEGMENT_SECONDS / read.time_base)
        for turn in range(times):
            for data, pts, dts, key in packets:
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.is_keyframe = write, read.time_base, key
                packet.pts, packet.dts = pts + turn * length, dts + turn * length
                target.mux(packet)


def make(case: Case, folder: Path) -> Path:
    path = folder / f"{case.name}.mp4"
    if path.is_file():
        return path
    print(f"making {path.name}", file=sys.stderr)
    unfinished = path.with_name(f"unfinished_{path.name}")
    if case.seconds <= SEGMENT_SECONDS:
        encode(unfinished, case, case.seconds)
    else:
        segment = make(Case(case.size, case.gop, SEGMENT_SECONDS), folder)
        repeat(segment, unfinished, case.seconds // SEGMENT_SECONDS)
    return unfinished.rename(path)
