"""Which frames to show: pure integers. Times are ticks of the source's own clock (pts of a file, index of a list)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from dynimg_plugin.config import Sampling
from dynimg_plugin.layout import prompt_slots


@dataclass(frozen=True)
class VideoIndex:
    """What a source says of itself without decoding.

    Attributes:
        iframes: times of the I-frames that can be shown, rising.
        first: time of the first frame that can be shown.
        last: time of the last one.
        frame_ticks: duration of one frame.
        tick_seconds: length of a tick in seconds.
        kind: where the index comes from, e.g. "packets" or "frames".
    """

    iframes: tuple[int, ...]
    first: int
    last: int
    frame_ticks: int
    tick_seconds: float
    kind: str


@dataclass(frozen=True)
class Pick:
    """One frame of a DynImg: the time that is asked for and its slot (0 = key frame)."""

    time: int
    slot: int


def sample(
    index: VideoIndex, *, num_images: int, num_prompts: int, policy: Sampling = "auto", seed: int | None = None
) -> list[list[Pick]]:
    """Frames of every DynImg, key frame first, then its prompts in time order.

    A clip of one 16-tick segment per DynImg (k key, p prompt, | border half way between keys):

        |..p...p..k.p...p...|..p...p..k.p...p...|

    Args:
        num_prompts: 0 for key frames alone.
        policy: "auto", "iframe" or "uniform", see DynImgConfig.sampling.
        seed: None takes the middle of each cell (evaluation); a number draws at random in it (training).
    """
    iframes = () if policy == "uniform" else index.iframes
    only_iframes = policy == "iframe"
    if only_iframes and not iframes:
        raise ValueError("sampling='iframe' needs I-frames, but none can be shown; use sampling='auto' or 'uniform'")
    rng = None if seed is None else random.Random(seed)
    keys = _key_frames(index, iframes, num_images, only_iframes)
    borders = [index.first, *((a + b + 1) // 2 for a, b in pairwise(keys)), index.last + index.frame_ticks]
    used = set(keys)
    groups = []
    for key, (start, stop) in zip(keys, pairwise(borders), strict=True):
        times: list[int] = []
        earlier = num_prompts // 2
        for low, high, count in ((start, key, earlier), (key + index.frame_ticks, stop, num_prompts - earlier)):
            side = [time for time in iframes if low <= time < high and time != key]
            times += _prompts(side, low, high, count, used, rng, only_iframes, fallback=key)
        groups.append([Pick(key, 0), *map(Pick, times, prompt_slots(num_prompts) if num_prompts else ())])
    return groups


def _key_frames(index: VideoIndex, iframes: tuple[int, ...], count: int, only_iframes: bool) -> list[int]:
    """Uniformly sampled I-frames where there are two per DynImg, else the middles of equal segments, snapped to one.

    With 2 * count I-frames or more the odd ones are taken: never the first, which has no earlier frames.
    """
    if len(iframes) >= 2 * count:
        return [iframes[(2 * i + 1) * len(iframes) // (2 * count)] for i in range(count)]
    segment = (index.last - index.first + index.frame_ticks) / count
    keys = []
    for i in range(count):
        middle = min(index.first + int((i + 0.5) * segment), index.last)
        near = [time for time in iframes if only_iframes or abs(time - middle) < 0.45 * segment]
        keys.append(min(near, key=lambda time: abs(time - middle)) if near else middle)
    return keys


def _prompts(
    side: list[int], low: int, high: int, count: int, used: set[int], rng: random.Random | None, only_iframes: bool,
    fallback: int,
) -> list[int]:  # fmt: skip
    """`count` times in [low, high), rising: per cell an unused I-frame, else one of the whole side, else in between."""
    times = []
    for start, stop in _cells(low, high, count):
        middle = (start + stop) / 2
        inside = [time for time in side if start <= time < stop and time not in used]
        inside = inside or _nearest((time for time in side if time not in used), middle)
        inside = inside or (_nearest(side, middle) if only_iframes else [])
        if inside:
            time = rng.choice(inside) if rng else min(inside, key=lambda time: abs(time - middle))
        elif only_iframes or high <= low:
            time = fallback
        else:
            time = min(max(int(rng.uniform(start, stop) if rng else middle), low), high - 1)
        used.add(time)
        times.append(time)
    return sorted(times)


def _nearest(times: Iterable[int], middle: float) -> list[int]:
    return sorted(times, key=lambda time: abs(time - middle))[:1]


def _cells(low: int, high: int, count: int) -> Iterator[tuple[float, float]]:
    width = (high - low) / max(1, count)
    return ((low + i * width, low + (i + 1) * width) for i in range(count))
