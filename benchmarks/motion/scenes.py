"""Clips drawn from a seed: a disc that drifts, one that stays, a streak, and in half of the clips a flash.

    FOUR_GROUPS: 20 frames                                              K: key frame: neither streak nor flash
    frame        0 1 K 3 4    5 6 K 8 9    . . K . .    . . K . .
    streak       . . . . .    x x . x x    . . . . .    . . . . .       around one of the key frames
    flash        . . . . .    . . . . .    . . . . .    . . . f f       before or after one

    ONE_GROUP: 13 frames; streak and flash last as many of them, so that it depends on the prompts what is seen
    frame        0 1 2 3 4 5 K 7 8 9 . . .
    streak       . . . x x x . x . . . . .
    flash        . . . f f . . . . . . . .

Everything is drawn with numpy for many clips at once. What stands where is kept too: towers are pretrained on it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from .questions import QUESTIONS

SIDE, GROUP = 64, 5
FRAMES = 4 * GROUP
SPLITS = ("train", "tuning", "evaluation")
COLOURS = np.array([[220, 40, 40], [40, 190, 60], [50, 70, 230], [230, 210, 40], [210, 50, 210], [40, 210, 220]])
PALETTE = np.concatenate([COLOURS, np.zeros((2, 3)), np.full((1, 3), 255)]).astype(np.float32)
KINDS = len(PALETTE)  # what a tower learns to see: a disc of each colour, a level streak, an upright one, a flash
STEPS = np.array([[0, -1], [0, 1], [-1, 0], [1, 0]], np.float32)  # (y, x) of left, right, up, down


@dataclass(frozen=True, eq=False)
class Timing:
    """When things happen, in frame numbers.

    Attributes:
        frames: of a clip.
        streak: (times, 4), its four frames by the answer to `when`.
        flash: (times, 2, 2), its two frames by one of four times, and before or after the key frame.
    """

    frames: int
    streak: np.ndarray
    flash: np.ndarray


_FIRST = GROUP * np.arange(4)  # frames of the groups
FOUR_GROUPS = Timing(FRAMES, np.add.outer(_FIRST, [0, 1, 3, 4]), np.add.outer(_FIRST, [[0, 1], [3, 4]]))
ONE_GROUP = Timing(  # 4, 6 and 12 prompts show something of every streak and of every flash
    frames=13,
    streak=np.array([[0, 1, 2, 3], [3, 4, 5, 7], [5, 7, 8, 9], [9, 10, 11, 12]]),
    flash=np.array([[[0, 1], [7, 8]], [[1, 2], [8, 9]], [[3, 4], [10, 11]], [[4, 5], [11, 12]]]),
)


@dataclass(frozen=True)
class Clips:
    """Clips without their pixels.

    Attributes:
        grey: (n,) the background. answers: (n, questions).
        places: (n, frames, 4, 2), centres (y, x) in pixels of drifting disc, still disc, streak and flash; NaN: absent.
        kinds: (n, 4), what each of the four is, below KINDS.
    """

    grey: np.ndarray
    answers: np.ndarray
    places: np.ndarray
    kinds: np.ndarray

    def __len__(self) -> int:
        return len(self.grey)

    def part(self, rows: slice | np.ndarray) -> Clips:
        return Clips(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw_clips(split: str, count: int, seed: int = 0, timing: Timing = FOUR_GROUPS) -> Clips:
    """`count` clips of a split; another split or seed is another stream of random numbers, another timing is not."""
    rng = np.random.default_rng([SPLITS.index(split), seed])
    third, slow, fast, when, place = (rng.integers(k, size=count) for k in (3, 4, 4, 4, 4))
    half, flash = (rng.integers(2, size=count) for _ in range(2))
    mover = rng.integers(6, size=count)
    still = (mover + rng.integers(1, 6, size=count)) % 6
    places = np.full((count, timing.frames, 4, 2), np.nan, np.float32)
    there = np.stack([rng.uniform(10, 54, count), 10 + 16 * third + rng.uniform(0, 12, count)], -1)
    places[:, :, 1] = there[:, None]
    places[:, :, 0] = _drift(rng, slow, there, timing.frames)
    rows = np.arange(count)[:, None]
    places[rows, timing.streak[when], 2] = _crossing(rng, fast)
    at = rng.uniform(11, 53, (count, 1, 2))
    places[rows, timing.flash[place, half], 3] = np.where(flash[:, None, None], at, np.nan)
    found = dict(direction_slow=slow, direction_fast=fast, attribute=mover, existence=flash, where=third, when=when)
    found |= dict(side=flash * (1 + half), static=still)
    kinds = np.stack([mover, still, 6 + fast // 2, np.full(count, 8)], -1)
    return Clips(rng.integers(90, 131, count), np.stack([found[q] for q in QUESTIONS], -1), places, kinds)


def _drift(rng: np.random.Generator, direction: np.ndarray, still: np.ndarray, frames: int) -> np.ndarray:
    """A path of 24 to 36 pixels at least 14 beside the still disc: (n, frames, 2)."""
    count = len(direction)
    step = STEPS[direction]
    across = np.where(step[:, 0] == 0, still[:, 0], still[:, 1])  # the still disc's place across the path
    across = 10 + (across - 10 + 14 + rng.uniform(0, 16, count)) % 44
    length = rng.uniform(24, 36, count)
    middle = rng.uniform(10 + length / 2, 54 - length / 2)
    along = middle[:, None] + length[:, None] * np.linspace(-0.5, 0.5, frames) * step.sum(-1)[:, None]
    level = (step[:, 0] == 0)[:, None]
    return np.stack([np.where(level, across[:, None], along), np.where(level, along, across[:, None])], -1)


def _crossing(rng: np.random.Generator, direction: np.ndarray) -> np.ndarray:
    """Four places 12 pixels apart, but for the one of a key frame in the middle: (n, 4, 2)."""
    step = STEPS[direction]
    middle = np.where(step == 0, rng.uniform(13, 51, step.shape), 32 + rng.uniform(-4, 4, step.shape))
    return middle[:, None] + step[:, None] * np.array([-24, -12, 12, 24])[:, None]


def render(clips: Clips) -> np.ndarray:
    """(n, frames, 64, 64, 3) uint8; 5 MB per 20 clips, so ask for some hundreds at once."""
    number = clips.places.shape[1]
    frames = np.empty((len(clips) * number, SIDE, SIDE, 3), np.uint8)
    frames[:] = clips.grey.repeat(number)[:, None, None, None]
    for thing, half in enumerate((8, 8, 13, 11)):
        centres = clips.places[:, :, thing].reshape(-1, 2)
        kind = clips.kinds[:, thing].repeat(number)
        shown = np.flatnonzero(~np.isnan(centres[:, 0]))
        if shown.size:
            _stamp(frames, shown, centres[shown], kind[shown], half)
    return frames.reshape(len(clips), number, SIDE, SIDE, 3)


def _stamp(frames: np.ndarray, numbers: np.ndarray, centres: np.ndarray, kinds: np.ndarray, half: int) -> None:
    """Blend one thing into each of the numbered frames, inside a box of 2 * half + 1 pixels."""
    corner = np.clip(np.round(centres).astype(int) - half, 0, SIDE - 2 * half - 1)
    rows, columns = (corner[:, axis, None] + np.arange(2 * half + 1) for axis in (0, 1))
    dy = np.abs(rows - centres[:, 0, None])[:, :, None]
    dx = np.abs(columns - centres[:, 1, None])[:, None, :]
    index = (numbers[:, None, None], rows[:, :, None], columns[:, None, :])
    alpha = _shape(dy, dx, kinds[:, None, None]).astype(np.float32)[..., None]
    below = frames[index]
    frames[index] = below + np.round(alpha * (PALETTE[kinds][:, None, None] - below)).astype(np.int16)


def _shape(dy: np.ndarray, dx: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """How much of a pixel a thing covers: discs of radius 6, streaks of 24 x 6 with blurred ends, a flash of 9."""
    if kinds.min() < 6:
        return np.clip(6.5 - np.hypot(dy, dx), 0, 1)
    if kinds.min() == 8:
        return np.clip(9.5 - np.hypot(dy, dx), 0, 1)
    along, across = np.where(kinds == 6, dx, dy), np.where(kinds == 6, dy, dx)
    return np.clip(3.5 - across, 0, 1) * np.clip((12.5 - along) / 5, 0, 1)
