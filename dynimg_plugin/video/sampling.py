"""Which frames to show: pure integers. Times are ticks of the source's own clock (pts of a file, index of a list)."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from statistics import median

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

    def between(self, start: float | None, end: float | None) -> VideoIndex:
        """The part of the video from `start` to `end` seconds after its first frame; None leaves a side open.

        Raises:
            ValueError: when no frame lies in between.
        """
        if not all(math.isfinite(bound) for bound in (start, end) if bound is not None):
            raise ValueError(f"start={start} and end={end} must be seconds; leave out a bound to leave that side open")
        low = self.first if start is None else max(self.first, self.first + round(start / self.tick_seconds))
        high = self.last if end is None else min(self.last, self.first + round(end / self.tick_seconds))
        if low > high:
            duration = (self.last - self.first + self.frame_ticks) * self.tick_seconds
            raise ValueError(f"no frame lies between start={start} and end={end} seconds; the video has {duration:.2f}")
        if high < self.last:  # sampling goes up to one tick before the frame after `last`: none may start after the end
            high = max(low, high - self.frame_ticks + 1)
        return replace(self, first=low, last=high, iframes=tuple(time for time in self.iframes if low <= time <= high))

    def frame_start(self, time: int) -> int:
        """The start of the frame shown at `time` in a clip of even frames; sampling in whole frames skips none."""
        return self.first + (time - self.first) // self.frame_ticks * self.frame_ticks


@dataclass(frozen=True)
class Pick:
    """One frame of a DynImg: the time that is asked for and its slot (0 = key frame)."""

    time: int
    slot: int


def sample(
    index: VideoIndex,
    *,
    num_images: int,
    num_prompts: int,
    policy: Sampling = "auto",
    seed: int | None = None,
    activity: Sequence[tuple[int, int]] = (),
) -> list[list[Pick]]:
    """Frames of every DynImg, key frame first, then its prompts in time order.

    A clip of one 16-tick segment per DynImg (k key, p prompt, | border half way between keys):

        |..p...p..k.p...p...|..p...p..k.p...p...|

    Args:
        num_prompts: 0 for key frames alone.
        policy: "auto", "iframe", "uniform" or "motion", see DynImgConfig.sampling.
        seed: None takes the middle of each cell (evaluation); a number draws at random in it (training).
        activity: (time, bytes) of the frames that are no I-frames, rising in time; "motion" needs it.
    """
    iframes = () if policy == "uniform" else index.iframes
    only_iframes = policy == "iframe"
    if only_iframes and not iframes:
        raise ValueError("sampling='iframe' needs I-frames, but none can be shown; use sampling='auto' or 'uniform'")
    rng = None if seed is None else random.Random(seed)
    keys = _key_frames(index, iframes, num_images, num_prompts, only_iframes)
    middles = ((a + b + 1) // 2 + index.frame_ticks - 1 for a, b in pairwise(keys))
    borders = [index.first, *map(index.frame_start, middles), index.last + index.frame_ticks]
    quiet = median(size for _, size in activity) if activity else 0
    groups = []
    for key, (start, stop) in zip(keys, pairwise(borders), strict=True):
        earlier = num_prompts // 2
        times: list[int] = []
        after = min(key + index.frame_ticks, index.last, stop)  # a clip's last frame has itself as its later prompts
        for low, high, count in ((start, key, earlier), (after, stop, num_prompts - earlier)):
            busy = [(time, size - quiet) for time, size in activity if low <= time < high]
            if policy == "motion" and len(busy) >= count:
                times += _busiest(busy, count, quiet / 4 + 1e-6, rng)
                continue
            side = [time for time in iframes if low <= time < high]
            pool = side or [key] if only_iframes else []  # what may be shown twice rather than an in-between frame
            times += _prompts(_Side(low, max(low + 1, high), side, pool), count, rng)
        groups.append([Pick(key, 0), *map(Pick, times, prompt_slots(num_prompts) if num_prompts else ())])
    return groups


@dataclass(frozen=True)
class _Side:
    """The stretch [low, high) before or after a key frame: its I-frames, and those to repeat when they are too few."""

    low: int
    high: int
    iframes: list[int]
    repeatable: list[int]


def _prompts(side: _Side, count: int, rng: random.Random | None) -> list[int]:
    """`count` times of one side, rising: per cell an I-frame of its own, else one to spare, else a frame in between."""
    width = (side.high - side.low) / max(1, count)
    cells = [(side.low + i * width, side.low + (i + 1) * width) for i in range(count)]
    picks = [_own(side.iframes, start, stop, rng) for start, stop in cells]
    for i, (start, stop) in enumerate(cells):
        middle = rng.uniform(start, stop) if rng else (start + stop) / 2
        if picks[i] is None:
            spare = [time for time in side.iframes if time not in picks] or side.repeatable
            picks[i] = _nearest(spare, middle) if spare else min(int(middle), side.high - 1)
    return sorted(pick for pick in picks if pick is not None)


def _busiest(busy: list[tuple[int, float]], count: int, floor: float, rng: random.Random | None) -> list[int]:
    """`count` times at even steps of the bytes beyond the clip's median, so close together where much changes.

    `floor` bytes for every frame keep the steps even where next to nothing changes.

    Bytes beyond the median of eight frames, two prompts at 1/4 and 3/4 of their sum:

        0 0 1 9 8 0 0 0   ->   the frames with 9 and 8
    """
    mass = list(accumulate(max(0.0, size) + floor for _, size in busy))
    picks: list[int] = []
    for i in range(count):
        share = (i + (rng.random() if rng else 0.5)) / count * mass[-1]
        earliest, latest = (picks[-1] + 1 if picks else 0), len(busy) - count + i
        picks.append(min(max(bisect.bisect_left(mass, share), earliest), latest))
    return [busy[pick][0] for pick in picks]


def _own(iframes: list[int], start: float, stop: float, rng: random.Random | None) -> int | None:
    """An I-frame in [start, stop): the one nearest the middle, or a random one."""
    inside = [time for time in iframes if start <= time < stop]
    return rng.choice(inside) if rng and inside else _nearest(inside, (start + stop) / 2)


def _nearest(times: Iterable[int], middle: float) -> int | None:
    return min(times, key=lambda time: abs(time - middle), default=None)


def _key_frames(index: VideoIndex, iframes: tuple[int, ...], count: int, prompts: int, only_iframes: bool) -> list[int]:
    """Uniformly sampled I-frames where there are two per DynImg, else the middles of equal segments, snapped to one.

    With 2 * count I-frames or more the odd ones are taken: never the first, which has no earlier frames.
    """
    if len(iframes) >= 2 * count:
        return [iframes[(2 * i + 1) * len(iframes) // (2 * count)] for i in range(count)]
    segment = (index.last - index.first + index.frame_ticks) / count
    reach = min(0.45 * segment, segment / 2 - (prompts / 2 + 1) * index.frame_ticks)  # leaves room for the prompts
    keys = []
    for i in range(count):
        middle = min(index.frame_start(index.first + int((i + 0.5) * segment)), index.last)
        near = [time for time in iframes if only_iframes or abs(time - middle) < reach]
        keys.append(min(near, key=lambda time: abs(time - middle)) if near else middle)
    return keys
