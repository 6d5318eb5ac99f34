"""Where a file's I-frames are, found without decoding: by hopping from key packet to key packet, else by a scan."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from av.packet import Packet

from dynimg_plugin.video.errors import VideoError
from dynimg_plugin.video.reader import Reader
from dynimg_plugin.video.sampling import VideoIndex

SEEKABLE = {"mov", "matroska", "flv", "asf", "avi"}  # containers with an index that seeks by time
MOST_HOPS = 128  # beyond this, I-frames at even distances of time serve as well as all of them
WIDEST_STEP = 64  # frames


def build_index(reader: Reader) -> VideoIndex:
    """The index of an open file.

    Raises:
        VideoError: when the file holds no frame.
    """
    if SEEKABLE & set(reader.format.split(",")):
        index = _hop(reader)
        if index is not None:
            return index
        reader.reopen()
    return _scan(reader)


def activity(reader: Reader, counted: bool) -> list[tuple[int, int]]:
    """(time, size in bytes) of every frame that can be shown and is no I-frame, in time order."""
    reader.reopen()
    packets = [p for p in reader.packets() if p.size and not p.is_discard]
    clock = range(len(packets)) if counted else [p.pts for p in packets]
    return sorted(
        (time, p.size) for time, p in zip(clock, packets, strict=True) if time is not None and not p.is_keyframe
    )


def _clock(reader: Reader) -> tuple[float, float]:
    """Seconds per tick and frames per second; 0 and 25 where the file tells neither."""
    stream = reader.stream
    return float(stream.time_base or 0), float(stream.average_rate or stream.guessed_rate or 25)


def _without_times(reader: Reader) -> bool:
    """AVI stores the order of decoding alone; FFmpeg works out when a frame is shown for MPEG-4 but not for H.264."""
    codec = reader.stream.codec_context
    return reader.format == "avi" and codec.name in {"h264", "hevc"} and bool(codec.has_b_frames)


def _hop(reader: Reader) -> VideoIndex | None:
    """Read one packet per group of pictures. None when the container's seeking cannot be trusted."""
    tick, rate = _clock(reader)
    if not tick or _without_times(reader):
        return None
    frame_ticks = max(1, round(1 / (rate * tick)))
    start = reader.stream.start_time or 0
    packet = reader.next_packet() if reader.seek(start) else None
    hidden = packet is not None and packet.is_discard
    keys: list[int] = []
    while packet is not None:
        if packet.pts is None or not packet.is_keyframe:
            return None
        if len(keys) == MOST_HOPS and reader.stream.duration:
            return _sparse(reader, keys, hidden, frame_ticks, tick)
        current = packet.pts
        if not packet.is_discard:  # a key packet before the edit list's start is not shown
            keys.append(current)
        packet = _next_key(reader, current, frame_ticks)
    if (not keys and reader.stream.frames == 0) or _passed_over_a_key(reader, keys):
        return None
    last = _last_shown(reader, keys[-1] if keys else start, keys)
    if last is None:
        return None
    return VideoIndex(tuple(keys), start if hidden or not keys else keys[0], last, frame_ticks, tick, "hop")


def _sparse(reader: Reader, keys: list[int], hidden: bool, frame_ticks: int, tick: float) -> VideoIndex | None:
    """An index of MOST_HOPS I-frames spread over a long file, so that its cost does not grow with the file."""
    start = reader.stream.start_time or 0
    found = {keys[0]}
    for i in range(MOST_HOPS):
        if reader.seek(start + (2 * i + 1) * reader.stream.duration // (2 * MOST_HOPS), backward=False):
            packet = reader.next_packet()
            if packet is None or packet.pts is None or not packet.is_keyframe:
                return None
            found |= set() if packet.is_discard else {packet.pts}
    last = _last_shown(reader, start + reader.stream.duration, None)
    if last is None:
        return None
    return VideoIndex(tuple(sorted(found)), start if hidden else keys[0], last, frame_ticks, tick, "sparse")


def refine(reader: Reader, index: VideoIndex) -> VideoIndex:
    """A part of a sparse index with the I-frames of that part."""
    found = set()
    for i in range(MOST_HOPS):
        at = index.first + i * (index.last - index.first) // MOST_HOPS
        packet = reader.next_packet() if reader.seek(at, backward=False) else None
        if packet is not None and packet.is_keyframe and not packet.is_discard and packet.pts is not None:
            found |= {packet.pts} if index.first <= packet.pts <= index.last else set()
    return replace(index, iframes=tuple(sorted(found)))


def _next_key(reader: Reader, current: int, frame_ticks: int) -> Packet | None:
    """The packet that the first seek past `current` lands on; steps widen, for a seek may land on the same packet."""
    step = 1
    while step <= WIDEST_STEP * frame_ticks:
        if not reader.seek(current + step, backward=False):
            return None
        packet = reader.next_packet()
        if packet is None or packet.pts is None or packet.pts > current:
            return packet
        step = frame_ticks if step < frame_ticks else 2 * step
    return None


def _passed_over_a_key(reader: Reader, keys: list[int]) -> bool:
    """Whether the first group of pictures holds a second key packet: Matroska's table need not name them all."""
    if "mov" in reader.format or len(keys) < 2 or not reader.seek(keys[0]):
        return False
    for packet in reader.packets():
        if packet.is_keyframe and packet.pts is not None and packet.pts > keys[0]:
            return bool(packet.pts < keys[1])
    return False


def _last_shown(reader: Reader, key: int, keys: list[int] | None) -> int | None:
    """Read the last group of pictures for the time of its last frame; None when it holds a key packet not hopped to.

    `keys` is None where nobody claims to know all of them.
    """
    if not reader.seek(key):
        return None
    last = None
    for packet in reader.packets():
        if packet.size and packet.pts is not None and not packet.is_discard:
            last = packet.pts if last is None else max(last, packet.pts)
            if keys is not None and packet.is_keyframe and (not keys or packet.pts > keys[-1]):
                return None
    return last


def _scan(reader: Reader) -> VideoIndex:
    """Read every packet's header. Files without a clock that rises (raw H.264) are counted in frames."""
    tick, rate = _clock(reader)
    packets = [(p.pts, p.is_keyframe, p.dts) for p in reader.packets() if p.size and not p.is_discard]
    shown = [(pts, key) for pts, key, _ in packets if pts is not None]
    decoded = [dts for *_, dts in packets if dts is not None]
    restarts = any(later < earlier for earlier, later in pairwise(decoded))  # one recording appended to another
    counted = not tick or _without_times(reader) or restarts or 2 * len(shown) < len(packets)
    if counted:
        tick, shown = 1 / rate, [(i, key) for i, (_, key, _) in enumerate(packets)]
    if not shown:
        raise VideoError(reader.name, "holds no frame; the file may be cut short")
    times = sorted(time for time, _ in shown)
    frame_ticks = max(1, round(1 / (rate * tick)))
    iframes = tuple(sorted(time for time, key in shown if key))
    return VideoIndex(iframes, times[0], times[-1], frame_ticks, tick, "count" if counted else "scan")
