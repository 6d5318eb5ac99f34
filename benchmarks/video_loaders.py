"""The loaders of benchmarks/video.py: (path, times of the 20 frames, seconds of a tick) -> DynImgs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from video_files import FPS


def picked_times(path: Path) -> tuple[list[int], float]:
    """Times of the 20 frames in ticks of the file, and the length of a tick in seconds."""
    from dynimg_plugin.video import open_video, sample

    with open_video(path) as video:
        groups = sample(video.index, num_images=4, num_prompts=4)
        return [pick.time for group in groups for pick in group], video.index.tick_seconds


def paint(images: Iterator[tuple[int, np.ndarray]]) -> object:
    """Compose 20 frames into DynImgs with the package's own code: five to a DynImg, the first a key frame."""
    from dynimg_plugin import DynImgConfig
    from dynimg_plugin.composition import Canvases
    from dynimg_plugin.video import Frame

    canvases = Canvases(DynImgConfig())
    for i, image in images:
        canvases.paint(Frame(image, 0.0), i // 5, i % 5)
    return canvases.dynimgs(lambda places: {})


def ours(path: Path, times: list[int], tick: float) -> object:
    from dynimg_plugin import compose

    return compose(path)


def motion(path: Path, times: list[int], tick: float) -> object:
    """Ours with prompt frames chosen by packet sizes: other frames, found by reading every packet."""
    from dynimg_plugin import DynImgConfig, compose

    return compose(path, DynImgConfig(sampling="motion"))


def floor(path: Path, times: list[int], tick: float) -> object:
    return paint(floor_frames(path, times))


def floor_frames(path: Path, times: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Open; a seek and one packet for an I-frame, a seek and a walk for a run of frames after one; convert."""
    keys = KEYS[path.name]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        order = sorted(range(len(times)), key=times.__getitem__)
        for key, run in itertools.groupby(order, key=lambda i: max(k for k in keys if k <= times[i])):
            wanted = list(run)
            container.seek(key, stream=stream, backward=True)
            if [times[i] for i in wanted] == [key]:
                packet = next(packet for packet in container.demux(stream) if packet.pts == key)
                frames = [*packet.decode(), *stream.codec_context.decode(None)]
                yield wanted[0], frames[0].to_ndarray(format="rgb24")
                continue
            shown = None
            for frame in container.decode(stream):
                while wanted and frame.pts > times[wanted[0]]:
                    yield wanted.pop(0), shown.to_ndarray(format="rgb24")
                if not wanted:
                    break
                shown = frame
            yield from ((i, shown.to_ndarray(format="rgb24")) for i in wanted)


KEYS: dict[str, tuple[int, ...]] = {}


def torchcodec(path: Path, times: list[int], tick: float) -> object:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", seek_mode="exact")
    order = sorted(range(len(times)), key=times.__getitem__)
    batch = decoder.get_frames_played_at([(times[i] + 0.5) * tick for i in order]).data
    return paint((i, frame.numpy()) for i, frame in zip(order, batch, strict=True))


def decord(path: Path, times: list[int], tick: float) -> object:
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    order = sorted(range(len(times)), key=times.__getitem__)
    batch = reader.get_batch([int((times[i] + 0.5) * tick * FPS) for i in order]).asnumpy()
    return paint((i, frame) for i, frame in zip(order, batch, strict=True))


def lmms_eval(path: Path, times: list[int], tick: float) -> object:
    from lmms_eval.models.model_utils.load_video import read_video

    return paint(enumerate(read_video(str(path), num_frm=20)))


RUN: dict[str, Callable[[Path, list[int], float], object]] = {
    "floor": floor,
    "ours": ours,
    "motion": motion,
    "torchcodec": torchcodec,
    "decord": decord,
    "lmms-eval": lmms_eval,
}
