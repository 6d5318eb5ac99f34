"""Where a file's I-frames are, found without decoding: by hopping from key packet to key packet, else by a scan."""

from __future__ import annotations

from av.packet import Packet

from dynimg_plugin.video.errors import VideoError
from dynimg_plugin.video.reader import Reader
from dynimg_plugin.video.sampling import VideoIndex

SEEKABLE = {"mov", "matroska", "flv", "asf", "avi"}  # containers with an index that seeks by time
MOST_HOPS = 20_000
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


def activity(reader: Reader) -> list[tuple[int, int]]:
    """(time, size in bytes) of every frame that can be shown and is no I-frame, in time order."""
    reader.reopen()
    found = [(p.pts, p.size) for p in reader.packets() if p.size and p.pts is not None and not p.is_keyframe]
    return sorted(found)


def _clock(reader: Reader) -> tuple[float, float]:
    """Seconds per tick and frames per second; 0 and 25 where the file tells neither."""
    stream = reader.stream
    return float(stream.time_base or 0), float(stream.average_rate or stream.guessed_rate or 25)


def _hop(reader: Reader) -> VideoIndex | None:
    """Read one packet per group of pictures. None when the container's seeking cannot be trusted."""
    tick, rate = _clock(reader)
    if not tick:
        return None
    frame_ticks = max(1, round(1 / (rate * tick)))
    start = reader.stream.start_time or 0
    packet = reader.next_packet() if reader.seek(start) else None
    keys: list[int] = []
    while packet is not None:
        if packet.pts is None or not packet.is_keyframe or len(keys) > MOST_HOPS:
            return None
        current = packet.pts
        if not packet.is_discard:  # a key packet before the edit list's start is not shown
            keys.append(current)
        packet = _next_key(reader, current, frame_ticks)
    if not keys and reader.stream.frames == 0:
        return None
    last = _last_shown(reader, keys[-1] if keys else start, keys)
    if last is None:
        return None
    return VideoIndex(tuple(keys), min([start, *keys[:1]]), last, frame_ticks, tick, "hop")


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


def _last_shown(reader: Reader, key: int, keys: list[int]) -> int | None:
    """Read the last group of pictures for the time of its last frame; None when it holds a key packet not hopped to."""
    if not reader.seek(key):
        return None
    last = None
    for packet in reader.packets():
        if packet.size and packet.pts is not None and not packet.is_discard:
            last = packet.pts if last is None else max(last, packet.pts)
            if packet.is_keyframe and (not keys or packet.pts > keys[-1]):
                return None
    return last


def _scan(reader: Reader) -> VideoIndex:
    """Read every packet's header. Files without times (raw H.264) are counted in frames instead."""
    tick, rate = _clock(reader)
    packets = [(p.pts, p.is_keyframe, p.is_discard) for p in reader.packets() if p.size]
    shown = [(pts, key) for pts, key, discard in packets if pts is not None and not discard]
    counted = not tick or 2 * len(shown) < len(packets)
    if counted:
        tick, shown = 1 / rate, [(i, key) for i, (_, key, _) in enumerate(packets)]
    if not shown:
        raise VideoError(reader.name, "holds no frame; the file may be cut short")
    times = sorted(time for time, _ in shown)
    frame_ticks = max(1, round(1 / (rate * tick)))
    iframes = tuple(sorted(time for time, key in shown if key))
    return VideoIndex(iframes, times[0], times[-1], frame_ticks, tick, "count" if counted else "scan")
