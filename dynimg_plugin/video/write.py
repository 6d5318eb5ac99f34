"""Writes frames to a video file: the only place of the package that encodes."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Iterable
from pathlib import Path

import av
import av.container
import numpy as np

X264 = "x264-params"  # a list of its own in one option: name=value:name=value
BT601, LIMITED_RANGE = 6, 1  # what swscale converts RGB to unless told otherwise, as numbered in the H.264 standard
# x264's AVX-512 code gives other bytes from one time to the next, which SSE4.2 does not.
ASSEMBLY = {X264: "asm=SSE4.2"} if platform.machine() in ("x86_64", "AMD64") else {}
# No I-frame at a scene cut, which the two encoders count in opposite directions; one thread gives the same bytes twice.
DEFAULTS = {
    "libx264": {"sc_threshold": "0", "threads": "1", **ASSEMBLY},
    "mpeg4": {"sc_threshold": "1000000000", "threads": "1"},
}


def write_video(
    path: Path | str,
    frames: Iterable[np.ndarray],
    *,
    fps: int = 16,
    codec: str = "libx264",
    gop: int = 250,
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
) -> Path:
    """Encodes `frames`, each (H, W, 3) uint8 RGB with H and W even, and returns `path`.

    Every `gop`-th frame is an I-frame, starting with the first; with libx264 and mpeg4 there are no others, and the
    same frames give the same bytes. `options` go to the encoder and win over the defaults here. The suffix of `path`
    picks the container. The file appears under its name only when it is complete, so several processes may write the
    same path at once.

    Raises ValueError for no frames, and for a frame of another shape, type or size than the first may have.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    settings = _settings(codec, options or {})
    try:
        with av.open(str(temporary), "w") as container:
            _encode(container, frames, fps=fps, codec=codec, gop=gop, options=settings, pix_fmt=pix_fmt)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _settings(codec: str, options: dict[str, str]) -> dict[str, str]:
    """Our defaults, then `options`; of x264's own list the last of two values counts, so that theirs come last."""
    ours = DEFAULTS.get(codec, {})
    own = ":".join(given[X264] for given in (ours, options) if X264 in given)
    return {**ours, **options, **({X264: own} if own else {})}


def _encode(
    container: av.container.OutputContainer,
    frames: Iterable[np.ndarray],
    *,
    fps: int,
    codec: str,
    gop: int,
    options: dict[str, str],
    pix_fmt: str,
) -> None:
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError("no frames to write")
    _check(first, first)
    stream = container.add_stream(codec, rate=fps, options=options)
    if not isinstance(stream, av.VideoStream):
        raise ValueError(f"{codec!r} is not a video codec")
    stream.height, stream.width = first.shape[:2]
    stream.pix_fmt, stream.gop_size = pix_fmt, gop
    stream.codec_context.colorspace, stream.codec_context.color_range = BT601, LIMITED_RANGE
    container.mux(stream.encode(av.VideoFrame.from_ndarray(first, format="rgb24")))
    for frame in iterator:
        _check(frame, first)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode(None))


def _check(frame: np.ndarray, first: np.ndarray) -> None:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"a frame must be (H, W, 3) uint8, got {frame.shape} {frame.dtype}")
    if frame.shape[0] % 2 or frame.shape[1] % 2:
        raise ValueError(f"height and width must be even, got {frame.shape[0]}x{frame.shape[1]}")
    if frame.shape != first.shape:
        raise ValueError(f"all frames must have one size: the first has {first.shape}, another {frame.shape}")
