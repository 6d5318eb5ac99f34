"""The clips of motion_qa: a seed gives a scene, a scene gives frames. Pure numpy, no files.

A clip has 64 frames at 16 frames per second, in four segments of 16 frames. The middle frame of a segment is its key
frame, and four prompt frames lie around that, as a DynImg reader of a clip without further I-frames takes them:

    frame of the segment      0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15
    key frame, prompt frames        p           p     K     p           p
    sides of the key frame   [------ before -----]        [----- after -----]
    slots of an appearance   [--- 0 ---]    [- 1 ]        [- 2 ]    [-- 3 --]

Two objects are there in every frame: one moves slowly along a straight line from edge to edge, one keeps its place.
Three of the four events happen besides, each in a segment of its own:

    fast    an object crosses the picture along a straight line within the segment
    count   an object appears one to four times, each time in another slot and at another place
    order   two lights come on, one before the key frame and one after it
    flash   an object lights up on one side of the key frame

No event is drawn in a key frame, nor one frame before and after it: nothing hides the object, it is switched off like a
lamp. What happens in an event can therefore be read from the frames between the key frames and from nowhere else. Every
object of a clip has a colour of its own. Whoever picks a random prompt frame from every quarter of a segment, as
training may do, still sees fast, order and flash, but misses a counted appearance in every other clip.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 288, 216  # pixels; 4:3, about the shape of a DynImg's key frame, in which a square then stays a square
FRAMES, FPS, SEGMENT = 64, 16, 16
DRAWING = 1  # names the cache folder; raised with every change of the pixels, so no old clip is taken for a new one

COLOURS = {
    "red": (220, 30, 40),
    "green": (20, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (245, 215, 20),
    "orange": (245, 130, 20),
    "purple": (140, 50, 180),
    "white": (250, 250, 250),
    "black": (10, 10, 10),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x grows to the right, y downwards
EVENTS = ("fast", "count", "order", "flash")

BEFORE, AFTER = (0, 6), (10, 15)  # first and last frame of the segment
SLOTS = ((0, 3), (5, 6), (10, 11), (13, 15))
CELLS = ((52, 144, 236), (40, 108, 176))  # x and y of the centres of a 3x3 grid of places, in pixels
RADIUS, EVENT_RADIUS = 26, 28
Point = tuple[float, float]


@dataclass(frozen=True)
class Span:
    """One appearance: frames `first` to `last`, both included, on a straight line from `start` to `end` in pixels."""

    first: int
    last: int
    start: Point
    end: Point

    def at(self, frame: int) -> Point:
        """The centre (x, y) in `frame`."""
        part = (frame - self.first) / max(self.last - self.first, 1)
        return tuple(a + (b - a) * part for a, b in zip(self.start, self.end, strict=True))  # type: ignore[return-value]


@dataclass(frozen=True)
class Track:
    """One object and all of its appearances."""

    colour: str
    shape: str
    radius: int
    spans: tuple[Span, ...]

    @property
    def name(self) -> str:
        """Colour and shape: "red circle"."""
        return f"{self.colour} {self.shape}"

    def at(self, frame: int) -> Point | None:
        """The centre (x, y) in `frame`, or None where the object is not drawn."""
        return next((span.at(frame) for span in self.spans if span.first <= frame <= span.last), None)


@dataclass(frozen=True)
class Scene:
    """What a clip shows. `events` holds the objects of each event by its name, in order of time.

    `fast_direction` and `asked` belong to the events fast and flash and mean nothing in a clip without them. `asked` is
    the object that the existence question names: the one that flashes, or one that the clip does not hold.
    """

    seed: int
    grey: int
    slow: Track
    slow_direction: str
    static: Track
    events: dict[str, tuple[Track, ...]]
    fast_direction: str
    asked: str

    @property
    def tracks(self) -> tuple[Track, ...]:
        """All objects, from the back to the front."""
        return (self.static, self.slow, *(track for tracks in self.events.values() for track in tracks))


def deal(stream: str, rank: int, values: int) -> int:
    """A number below `values` for the `rank`-th asker: `values` askers in a row get each number once, in random order.

    Answers that are dealt so come out balanced to the last row, where independent draws would leave noise.
    """
    rng = np.random.default_rng([zlib.crc32(stream.encode()), rank // values])
    return int(rng.permutation(values)[rank % values])


def events_of(seed: int) -> tuple[str, ...]:
    """The three events of a clip: each of four clips in a row leaves out another one."""
    return tuple(event for event in EVENTS if event != EVENTS[seed % 4])


def event_rank(seed: int, event: str) -> int:
    """How many seeds below `seed` have this event."""
    return 3 * (seed // 4) + sum(event in events_of(other) for other in range(seed - seed % 4, seed))


def make_scene(seed: int) -> Scene:
    """The scene of a seed, a pure function of it. No pixels are drawn."""
    stage = _Stage(seed)
    shapes = _two_shapes(seed, stage.rng)
    place = stage.free.pop()
    segments = stage.rng.permutation(FRAMES // SEGMENT)
    events = {
        event: getattr(stage, event)(int(segment) * SEGMENT)
        for event, segment in zip(events_of(seed), segments, strict=False)
    }
    return Scene(
        seed=seed,
        grey=int(stage.rng.integers(118, 139)),
        slow=Track(stage.colours[0], shapes[0], RADIUS, (Span(0, FRAMES - 1, *stage.slow_line),)),
        slow_direction=stage.slow_direction,
        static=Track(stage.colours[1], shapes[1], RADIUS, (Span(0, FRAMES - 1, place, place),)),
        events=events,
        fast_direction=stage.fast_direction,
        asked=stage.asked(events["flash"][0]) if "flash" in events else "",
    )


class _Stage:
    """The draws of one seed. A method named like an event returns the objects of that event, given its first frame."""

    def __init__(self, seed: int) -> None:
        self.seed, self.rng = seed, np.random.default_rng(seed)
        self.colours = _eight_colours(seed, self.rng)
        self.slow_direction = list(DIRECTIONS)[deal("slow", seed, 4)]
        self.fast_direction = list(DIRECTIONS)[deal("fast", event_rank(seed, "fast"), 4)]
        self.lane = int(self.rng.integers(3))
        self.slow_line = self.line(self.slow_direction, self.lane, margin=24)
        taken = CELLS[1 - _axis(self.slow_direction)][self.lane]  # a row's y for a horizontal mover, else a column's x
        cells = [(x, y) for x in CELLS[0] for y in CELLS[1] if taken != (x, y)[1 - _axis(self.slow_direction)]]
        self.free = [(cells[i][0] + self.jitter(), cells[i][1] + self.jitter()) for i in self.rng.permutation(6)]

    def jitter(self) -> float:
        """A shift of up to 6 pixels: too little for two cells to touch."""
        return float(self.rng.integers(-6, 7))

    def line(self, direction: str, lane: int, *, margin: float) -> tuple[Point, Point]:
        """From edge to edge along a row or column of the grid, `margin` pixels short of either edge."""
        axis = _axis(direction)
        low, high, beside = margin, (WIDTH, HEIGHT)[axis] - margin, CELLS[1 - axis][lane] + self.jitter()
        ends = ((low, beside), (high, beside)) if axis == 0 else ((beside, low), (beside, high))
        return ends if sum(DIRECTIONS[direction]) > 0 else (ends[1], ends[0])

    def shape(self) -> str:
        return str(self.rng.choice(SHAPES))

    def fast(self, start: int) -> tuple[Track, ...]:
        across = _axis(self.slow_direction) != _axis(self.fast_direction)
        lane = int(self.rng.choice([lane for lane in range(3) if across or lane != self.lane]))
        whole = Span(start, start + SEGMENT, *self.line(self.fast_direction, lane, margin=10))
        spans = [Span(start + i, start + j, whole.at(start + i), whole.at(start + j)) for i, j in (BEFORE, AFTER)]
        return (Track(self.colours[2], self.shape(), EVENT_RADIUS, tuple(spans)),)

    def count(self, start: int) -> tuple[Track, ...]:
        times = 1 + deal("count", event_rank(self.seed, "count"), 4)
        slots = [SLOTS[i] for i in sorted(self.rng.permutation(4)[:times])]
        spans = [Span(start + i, start + j, p, p) for (i, j), p in zip(slots, self.free, strict=False)]
        return (Track(self.colours[3], self.shape(), EVENT_RADIUS, tuple(spans)),)

    def order(self, start: int) -> tuple[Track, ...]:
        places = [self.free[i] for i in self.rng.permutation(len(self.free))[:2]]
        return tuple(
            Track(colour, "circle", EVENT_RADIUS, (Span(start + i, start + j, place, place),))
            for colour, (i, j), place in zip(self.colours[4:6], (BEFORE, AFTER), places, strict=True)
        )

    def flash(self, start: int) -> tuple[Track, ...]:
        i, j = BEFORE if self.rng.integers(2) else AFTER
        place = self.free[int(self.rng.integers(len(self.free)))]
        return (Track(self.colours[6], self.shape(), EVENT_RADIUS, (Span(start + i, start + j, place, place),)),)

    def asked(self, shown: Track) -> str:
        if deal("asked", event_rank(self.seed, "flash"), 2):
            return shown.name
        return f"{self.colours[7]} {self.rng.choice([shape for shape in SHAPES if shape != shown.shape])}"


def _eight_colours(seed: int, rng: np.random.Generator) -> list[str]:
    """A colour for each object, in the order slow, static, fast, count, first light, second light, flash, asked.

    Those that are answers are dealt: the first light's, and the slow object's, which even seeds ask for.
    """
    slow = deal(f"slow colour {seed % 2}", seed // 2, len(COLOURS))
    light = deal("first light", event_rank(seed, "order"), len(COLOURS))
    rest = [int(i) for i in rng.permutation(len(COLOURS)) if i not in (slow, light)]
    light = rest.pop() if light == slow else light
    return [list(COLOURS)[i] for i in (slow, *rest[:3], light, *rest[3:])]


def _two_shapes(seed: int, rng: np.random.Generator) -> tuple[str, str]:
    """Different shapes for the slow object and the static one; the one that is asked for is dealt."""
    asked = SHAPES[deal(f"shape {seed % 2}", seed // 2, 4)]
    other = str(rng.choice([shape for shape in SHAPES if shape != asked]))
    return (other, asked) if seed % 2 else (asked, other)


def _axis(direction: str) -> int:
    """0 for a horizontal direction, 1 for a vertical one."""
    return 0 if DIRECTIONS[direction][0] else 1


def draw(seed: int) -> np.ndarray:
    """The frames of a seed's clip, (64, 216, 288, 3) uint8 RGB."""
    return np.stack(list(draw_frames(make_scene(seed))))


def draw_frames(scene: Scene) -> Iterator[np.ndarray]:
    """The frames one by one, each (216, 288, 3) uint8 RGB. Only what moves or comes and goes is painted anew."""
    empty = np.full((HEIGHT, WIDTH, 3), float(scene.grey))
    _paint(empty, scene.static, scene.static.spans[0].start)
    still, picture = np.rint(empty).astype(np.uint8), empty.copy()
    for frame in range(FRAMES):
        shown = [(track, track.at(frame)) for track in scene.tracks[1:]]
        painted = [_paint(picture, track, centre) for track, centre in shown if centre is not None]
        drawn = still.copy()
        for area in painted:
            drawn[area] = np.rint(picture[area]).astype(np.uint8)
        for area in painted:
            picture[area] = empty[area]
        yield drawn


def _paint(picture: np.ndarray, track: Track, centre: Point) -> tuple[slice, slice]:
    """Lays a shape over `picture` in place, its edge one pixel soft; returns the rows and columns it lies in."""
    columns, rows = (slice(max(int(c) - track.radius - 2, 0), int(c) + track.radius + 3) for c in centre)
    patch = picture[rows, columns]
    y = np.arange(rows.start, rows.start + patch.shape[0])[:, None] - centre[1]
    x = np.arange(columns.start, columns.start + patch.shape[1])[None, :] - centre[0]
    cover = np.clip(_depth(track.shape, x, y, float(track.radius)) + 0.5, 0.0, 1.0)[..., None]
    patch += cover * (np.array(COLOURS[track.colour], dtype=float) - patch)
    return rows, columns


def _depth(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """How far the point (x, y) lies inside the shape around the origin, in pixels; negative outside.

    Only + - * / and sqrt, which every machine rounds alike: the same pixels everywhere.
    """
    side, across = np.abs(x), np.abs(y)
    if shape == "circle":
        return radius - np.sqrt(x * x + y * y)
    if shape == "square":
        return 0.87 * radius - np.maximum(side, across)
    if shape == "triangle":  # apex (0, -r), base from (-r, 0.75 r) to (r, 0.75 r)
        return np.minimum(0.75 * radius - y, (y + radius - 1.75 * side) / np.sqrt(1 + 1.75 * 1.75))
    bar = 0.38 * radius
    return np.maximum(np.minimum(radius - side, bar - across), np.minimum(bar - side, radius - across))
