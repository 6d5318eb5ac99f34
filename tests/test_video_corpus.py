"""Every kind of file that PyAV's wheel can write, and the nasty ones: the pixels of a full decode, or a VideoError."""

import io
import os
import random
import struct
import time
from bisect import bisect_right
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import av
import numpy as np
import pytest
from conftest import moving_square
from PIL import Image
from test_video import audio, encode, faststart, full_decode, rotated

from dynimg_plugin import DynImgConfig, VideoError, compose
from dynimg_plugin.video import VideoLimits, open_video
from dynimg_plugin.video.index import _scan
from dynimg_plugin.video.reader import Reader

FRAMES, HEIGHT, WIDTH, FPS, GOP = 48, 64, 96, 16, 12
SMALL = DynImgConfig(num_images=2)


class Kind(NamedTuple):
    """How to write a file, and what its index and the way to its frames must be."""

    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    options: Mapping[str, str] = MappingProxyType({})
    container: Mapping[str, str] = MappingProxyType({})
    index: str = "hop"
    path: str = "seek"
    iframes: str = "exact"  # "packets": the container flags other packets than the decoder; "late": see below


B = {"bf": "3", "b_strategy": "0"}
OPEN = {**B, "x264-params": "open-gop=1"}
HEVC = {"x265-params": "log-level=none:open-gop=0"}
HEVC_OPEN = {"x265-params": "log-level=none:open-gop=1:bframes=3:b-adapt=0"}
VPX = {"deadline": "realtime", "cpu-used": "8"}
ALT_REF = {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "16"}
SCAN, COUNT = {"index": "scan", "path": "sequential"}, {"index": "count", "path": "sequential"}
KINDS = {
    "plain.mp4": Kind(),
    "b_frames.mp4": Kind(options=B),
    "faststart.mp4": Kind(options=B, container={"movflags": "faststart"}),
    "fragment_per_key.mp4": Kind(options=B, container={"movflags": "frag_keyframe+empty_moov"}),
    "fragment_dash.mp4": Kind(options=B, container={"movflags": "frag_keyframe+empty_moov+default_base_moof+dash"}),
    "fragment_per_time.mp4": Kind(options=B, container={"movflags": "empty_moov", "frag_duration": "300000"}),
    "b_frames.mov": Kind(options=B),
    "b_frames.mkv": Kind(options=B),
    "b_frames.flv": Kind(options=B),
    "no_b_frames.avi": Kind(options={"bf": "0"}),
    "b_frames.avi": Kind(options=B, **COUNT),
    "b_frames.ts": Kind(options=B, **SCAN),
    "b_frames.nut": Kind(options=B, **SCAN),
    "open_gop.mp4": Kind(options=OPEN),
    "open_gop.mkv": Kind(options=OPEN),
    "open_gop.ts": Kind(options=OPEN, **SCAN),
    "open_gop.h264": Kind(options=OPEN, iframes="early", **COUNT),
    "raw.h264": Kind(options=B, **COUNT),
    "intra_refresh.mp4": Kind(options={"x264-params": "intra-refresh=1"}, path="sequential", iframes="packets"),
    "intra_refresh_b.mkv": Kind(
        options={"x264-params": "intra-refresh=1:bframes=2"}, path="sequential", iframes="packets"
    ),
    "ten_bit.mp4": Kind(pix_fmt="yuv420p10le", options=B),
    "full_chroma.mp4": Kind(pix_fmt="yuv444p", options=B),
    "all_intra.mp4": Kind(options={"g": "1"}),
    "hevc.mp4": Kind("libx265", options=HEVC),
    "hevc_ten_bit.mp4": Kind("libx265", "yuv420p10le", HEVC),
    "hevc_open_gop.mp4": Kind("libx265", options=HEVC_OPEN),
    "hevc_open_gop.mkv": Kind("libx265", options=HEVC_OPEN),
    "raw.hevc": Kind("libx265", options=HEVC, **COUNT),
    "vp8.webm": Kind("libvpx", options=VPX),
    "vp9.webm": Kind("libvpx-vp9", options=VPX),
    "vp9_hidden_frames.webm": Kind("libvpx-vp9", options=ALT_REF),
    "av1_svt.webm": Kind("libsvtav1", options={"preset": "12"}),
    "av1_svt.mp4": Kind("libsvtav1", options={"preset": "12"}),
    "av1_aom.mkv": Kind("libaom-av1", options={"cpu-used": "8", "usage": "realtime"}),
    "mpeg4.avi": Kind("mpeg4"),
    "mpeg4_b.avi": Kind("mpeg4", options={"bf": "2"}),
    "mpeg4_b.mp4": Kind("mpeg4", options={"bf": "2"}),
    "mpeg2.ts": Kind("mpeg2video", **SCAN),
    "mpeg2_b.ts": Kind("mpeg2video", options={"bf": "2"}, **SCAN),
    "mpeg2_b.mpg": Kind("mpeg2video", options={"bf": "2"}, **SCAN),
    "mpeg2_b.mkv": Kind("mpeg2video", options={"bf": "2"}),
    "mjpeg.avi": Kind("mjpeg", "yuvj420p"),
    "mjpeg.mov": Kind("mjpeg", "yuvj420p"),
    "wmv2.wmv": Kind("wmv2", **SCAN),
    "sorenson.flv": Kind("flv"),
    "prores.mov": Kind("prores_ks", "yuv422p10le"),
    "ffv1.mkv": Kind("ffv1"),
    "runs.mov": Kind("qtrle", "rgb24", iframes="packets"),
    "raw.y4m": Kind("rawvideo", **SCAN),
    "animated.gif": Kind("gif", "rgb8", **SCAN),
    "animated.apng": Kind("apng", "rgb24", iframes="packets", **SCAN),
    "theora.ogv": Kind("libtheora", **SCAN),
}
NO_SCENE_CUTS = {"libx264": "0", "mpeg4": "1000000000", "mpeg2video": "1000000000"}


def write(path, kind=None, *, count=FRAMES, height=HEIGHT, width=WIDTH):
    """A file of the kind that its name says."""
    kind = kind or KINDS[path.name]
    try:
        av.codec.Codec(kind.codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this PyAV has no encoder {kind.codec}")
    options = dict(kind.options)
    if kind.codec in NO_SCENE_CUTS:
        options |= {"threads": "1", "sc_threshold": NO_SCENE_CUTS[kind.codec]}
    with av.open(str(path), "w", options=dict(kind.container)) as container:
        stream = container.add_stream(kind.codec, rate=25 if kind.codec == "mpeg2video" else FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, kind.pix_fmt
        stream.gop_size = int(options.get("g", GOP))
        for frame in moving_square(count, height, width):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name of KINDS -> that file, written once."""
    folder = tmp_path_factory.mktemp("kinds")
    return lambda name: folder / name if (folder / name).exists() else write(folder / name)


def clocked(path):
    """(time, key frame or not, RGB) of a full decode; frames without times that rise are counted."""
    frames = full_decode(path)
    times = [pts for pts, *_ in frames]
    if None in times or any(b <= a for a, b in pairwise(times)):
        times = range(len(frames))
    return [(time, key, pixels) for time, (_, key, pixels) in zip(times, frames, strict=True)]


def scanned(path):
    reader = Reader(path, str(path), VideoLimits())
    reader.reopen()
    try:
        return _scan(reader)
    finally:
        reader.close()


def assert_frames_of_a_full_decode(video, decoded, times):
    starts = [start for start, *_ in decoded]
    for time_, frame in zip(times, video.frames_at(times), strict=True):
        _, key, pixels = decoded[max(0, bisect_right(starts, time_) - 1)]
        assert np.array_equal(frame.pixels, pixels), f"another picture at {time_}"
        assert frame.is_iframe == key


def copied(path, source, **options):
    """The packets of `source` in another container."""
    with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    return path


def refused(source, reason, **options):
    with pytest.raises(VideoError, match=reason) as error:
        compose(source, SMALL, **options)
    assert str(error.value) == f"{error.value.path}: {error.value.reason}"
    if isinstance(source, str | Path):
        assert error.value.path == str(source)


def record_of(source, **options):
    dynimgs = compose(source, SMALL, **options)
    assert [image.size for dynimg in dynimgs for image in dynimg.images] == [(378, 378)] * 2
    return dynimgs[0].record


@pytest.mark.parametrize("name", KINDS)
def test_the_index_is_the_clock_and_the_iframes_of_a_full_decode(name, made):
    path, kind = made(name), KINDS[name]
    decoded, video = clocked(path), open_video(path)
    assert len(decoded) == FRAMES
    assert video.index.kind == kind.index
    assert (video.index.first, video.index.last) == (decoded[0][0], decoded[-1][0])
    if kind.iframes == "exact":
        assert list(video.index.iframes) == [time for time, key, _ in decoded if key]
    if kind.index == "hop":
        scan = scanned(path)
        assert (video.index.iframes, video.index.first, video.index.last) == (scan.iframes, scan.first, scan.last)


@pytest.mark.parametrize("name", KINDS)
def test_any_choice_of_frames_has_the_pixels_of_a_full_decode(name, made):
    path = made(name)
    decoded = clocked(path)
    starts = [start for start, *_ in decoded]
    in_between = [(a + b) // 2 for a, b in list(pairwise(starts))[1::3]]
    iframes = list(open_video(path).index.iframes)
    for times in (iframes, in_between, [*reversed(starts[2::5]), *iframes], starts):
        with open_video(path) as video:
            assert_frames_of_a_full_decode(video, decoded, times)
            assert (video.path, video.damaged) == (KINDS[name].path, False)


@pytest.mark.parametrize("name", KINDS)
def test_the_record_tells_how_the_frames_were_found(name, made):
    record = record_of(made(name))
    assert (record["index"], record["path"]) == (KINDS[name].index, KINDS[name].path)
    assert (record["damaged"], record["corrupt_frames"], record["unique_frames"]) == (False, 0, 10)


@pytest.mark.parametrize("name", ["sound.mp4", "sound.mkv", "sound.flv", "sound.ts", "sound.avi", "sound.mov"])
def test_sound_between_the_packets_changes_nothing(name, tmp_path):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        options = {"threads": "1", "sc_threshold": "0", "bf": "0" if name.endswith("avi") else "2"}
        pictures = container.add_stream("libx264", rate=FPS, options=options)
        pictures.height, pictures.width, pictures.gop_size = HEIGHT, WIDTH, GOP
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for number, pixels in enumerate(moving_square(FRAMES, HEIGHT, WIDTH)):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
            tone.sample_rate, tone.pts = 16000, 1000 * number
            container.mux(sound.encode(tone))
        container.mux(sound.encode(None))
        container.mux(pictures.encode(None))
    decoded, video, scan = clocked(path), open_video(path), scanned(path)
    starts = [start for start, *_ in decoded]
    assert (video.index.iframes, video.index.first, video.index.last) == (scan.iframes, scan.first, scan.last)
    assert_frames_of_a_full_decode(video, decoded, [*starts[5::7], *video.index.iframes])
    assert video.path == ("sequential" if name.endswith("ts") else "seek")


def test_a_table_that_names_every_second_iframe_is_not_believed(tmp_path):
    content = bytearray(write(tmp_path / "b_frames.mkv", Kind(options={"g": "4", **B})).read_bytes())
    place = content.rindex(b"\x1c\x53\xbb\x6b") + 6  # Matroska's Cues: its name, two bytes of length, then the entries
    numbers = iter(range(100))
    while place < len(content):
        if content[place] == 0xBF or next(numbers) % 2:  # a checksum or a CuePoint; 0xEC says "nothing here"
            content[place] = 0xEC
        place += 2 + (content[place + 1] & 0x7F)
    path = tmp_path / "sparse.mkv"
    path.write_bytes(content)
    with open_video(path) as video:
        assert len(video.index.iframes) == FRAMES / 4


@pytest.mark.parametrize("suffix", ["mkv", "ts", "flv"])
def test_uneven_times_are_shown_by_the_clock(suffix, tmp_path):
    path = tmp_path / f"uneven.{suffix}"
    times = np.cumsum(np.random.default_rng(0).integers(1, 9, 40)).tolist()
    with av.open(str(path), "w") as container:
        encode(container, "libx264", zip(times, moving_square(40), strict=True))
    decoded = clocked(path)
    first, last = decoded[0][0], decoded[-1][0]
    with open_video(path) as video:
        assert_frames_of_a_full_decode(video, decoded, list(range(first, last, (last - first) // 50)))


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_a_late_start_is_second_zero(suffix, tmp_path):
    path = tmp_path / f"late.{suffix}"
    with av.open(str(path), "w") as container:
        encode(container, "libx264", ((14 * FPS + i, frame) for i, frame in enumerate(moving_square(32))))
    times = [place.pts_seconds for dynimg in compose(path, SMALL) for place in dynimg.frames]
    assert 0 <= min(times) <= max(times) < 2


def test_a_clip_whose_only_iframe_lies_before_the_edit_list_is_shown(tmp_path):
    whole = write(tmp_path / "whole.mp4", Kind(options={**B, "g": "250"}))
    content = bytearray(whole.read_bytes())
    entry = content.index(b"elst") + 12
    duration, start = struct.unpack_from(">Ii", content, entry)
    struct.pack_into(">Ii", content, entry, duration * 28 // FRAMES, start + 20 * 1024)
    path = tmp_path / "edited.mp4"
    path.write_bytes(content)
    record = record_of(path)
    assert (record["iframes_in_video"], record["unique_frames"]) == (0, 10)
    with open_video(path) as video:
        shown = [frame.pixels for frame in video.frames_at(range(0, 28 * 1024, 1024))]
    assert all(np.array_equal(a, pixels) for a, (*_, pixels) in zip(shown, full_decode(whole)[20:], strict=True))


def test_a_recording_appended_to_another_of_a_different_size_is_counted(tmp_path):
    large = write(tmp_path / "large.ts", KINDS["b_frames.ts"], height=80, width=128).read_bytes()
    small = write(tmp_path / "b_frames.ts").read_bytes()
    path = tmp_path / "both.ts"
    path.write_bytes(large + small)
    decoded, video = clocked(path), open_video(path)
    assert (video.index.kind, video.index.first, video.index.last) == ("count", 0, 2 * FRAMES - 1)
    assert video.index.iframes == tuple(range(0, 2 * FRAMES, GOP))
    assert_frames_of_a_full_decode(video, decoded, range(2 * FRAMES))
    assert {pixels.shape for *_, pixels in decoded} == {(80, 128, 3), (64, 96, 3)}
    assert record_of(path)["unique_frames"] == 10
    motion = compose(path, DynImgConfig(num_images=2, sampling="motion"))
    assert max(place.pts_seconds for place in motion[1].frames) > FRAMES / FPS


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["b_frames.mp4", "vp9.webm", "b_frames.ts", "animated.gif", "raw.h264", "mjpeg.avi"])
def test_of_a_very_short_clip_every_frame_is_shown(name, count, tmp_path):
    assert record_of(write(tmp_path / name, count=count))["unique_frames"] == count


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tiff", "gif"])
@pytest.mark.parametrize("name", ["one", "%03d", "12:30"])
def test_a_picture_of_any_name_is_a_clip_of_one_frame(name, suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((48, 32), 60).convert("RGB").save(f"{name}.{suffix}")
    assert record_of(f"{name}.{suffix}")["unique_frames"] == 1


def test_a_picture_that_is_called_a_video_is_read_all_the_same(tmp_path):
    Image.new("RGB", (48, 32), (200, 10, 10)).save(tmp_path / "clip.mp4", format="JPEG")
    assert record_of(tmp_path / "clip.mp4")["unique_frames"] == 1


@pytest.mark.parametrize(("name", "pix_fmt", "codec"), [("a.webm", "yuva420p", "libvpx-vp9"), ("a.png", "rgba", "png")])
def test_transparency_is_left_out_and_not_painted_black(name, pix_fmt, codec, tmp_path):
    pixels = np.full((32, 48, 4), (200, 100, 50, 0), np.uint8)
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.height, stream.width, stream.pix_fmt = 32, 48, pix_fmt
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        container.mux(stream.encode(None))
    with open_video(tmp_path / name) as video:
        shown = video.frames_at([0])[0].pixels
    assert np.abs(shown.reshape(-1, 3).mean(0) - (200, 100, 50)).max() < 8


@pytest.mark.parametrize(("height", "width"), [(480, 16), (16, 480), (2, 2)])
def test_extreme_shapes_are_composed_with_each_aspect(height, width, tmp_path):
    path = write(tmp_path / "plain.mp4", count=6, height=height, width=width) if height > 2 else tmp_path / "dot.png"
    if height == 2:
        Image.new("RGB", (2, 2)).save(path)
    for aspect in ("stretch", "auto", "keep"):
        for resize in ("exact", "fast"):
            assert len(compose(path, DynImgConfig(num_images=1, aspect=aspect, resize=resize))) == 1


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(("ratio", "shape"), [((4, 3), (120, 213, 3)), ((1, 2), (120, 80, 3))])
def test_pixels_that_are_not_square_are_made_square(suffix, ratio, shape, tmp_path):
    path = tmp_path / f"wide.{suffix}"
    with av.open(str(path), "w") as container:
        encode(container, "libx264", enumerate(moving_square(2)), sample_aspect_ratio=Fraction(*ratio))
    assert open_video(path).frames_at([0])[0].pixels.shape == shape


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_file_is_composed_like_its_turned_frames(degrees, tmp_path):
    path = rotated(tmp_path / "turned.mp4", write(tmp_path / "plain.mp4"), degrees)
    turned = [np.rot90(pixels, -degrees // 90) for *_, pixels in full_decode(path)]
    with open_video(path) as video:
        frames = video.frames_at([i * video.index.frame_ticks for i in range(FRAMES)])
    assert all(np.array_equal(frame.pixels, pixels) for frame, pixels in zip(frames, turned, strict=True))


def hit(content, seed, *, times=12, length=32):
    """`content` with runs of random bytes behind its first eighth."""
    content, rng = bytearray(content), random.Random(seed)
    for _ in range(times):
        at = rng.randrange(len(content) // 8, len(content) - length)
        content[at : at + length] = rng.randbytes(length)
    return bytes(content)


@pytest.mark.parametrize("name", ["faststart.mp4", "fragment_per_key.mp4", "b_frames.flv", "mpeg2_b.mpg"])
def test_a_file_that_is_cut_short_says_so_whatever_is_chosen_of_it(name, made, tmp_path):
    content = made(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: len(content) * 6 // 10])
    with open_video(path) as video:
        first = video.frames_at([video.index.first])[0]
        assert np.array_equal(first.pixels, full_decode(made(name))[0][2])
        assert video.damaged
    assert record_of(path)["damaged"]


@pytest.mark.parametrize("name", ["b_frames.mkv", "vp9.webm", "mpeg4.avi", "b_frames.ts", "raw.h264", "animated.gif"])
def test_of_a_file_that_is_cut_short_without_a_trace_the_rest_is_shown(name, made, tmp_path):
    content = made(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: len(content) * 8 // 10])
    assert record_of(path)["unique_frames"] >= 8


@pytest.mark.parametrize("name", ["faststart.mp4", "b_frames.mkv", "b_frames.ts"])
def test_hits_in_the_middle_of_a_file_are_told(name, made, tmp_path):
    outcomes = []
    for seed in range(12):
        path = tmp_path / f"{seed}_{name}"
        path.write_bytes(hit(made(name).read_bytes(), seed))
        try:
            record = record_of(path)
        except VideoError as error:
            outcomes.append(error.path == str(path) and bool(error.reason))
        else:
            outcomes.append(record["damaged"] or record["corrupt_frames"] > 0)
    assert sum(outcomes) >= 6, outcomes  # a decoder cannot see all damage


@pytest.mark.parametrize("name", ["b_frames.ts", "b_frames.mkv"])
def test_a_file_that_starts_in_the_middle_is_shown_from_its_first_iframe(name, made, tmp_path):
    content = made(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(content[len(content) // 2 // 188 * 188 :])
    if name.endswith("ts"):
        assert record_of(path)["unique_frames"] >= 5
    else:
        refused(path, "cannot be read as a video")


def cover_art(path):
    """Sound with a picture of its cover, as music has it."""
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 99, 9)).save(picture, format="PNG")
    body = b"\0image/png\0\3\0" + picture.getvalue()
    frame = b"APIC" + len(body).to_bytes(4, "big") + b"\0\0" + body
    length = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    music = audio(path.with_suffix(".plain.mp3"), "libmp3lame", "fltp", np.float32)
    path.write_bytes(b"ID3\3\0\0" + length + frame + music.read_bytes())
    return path


def test_the_cover_of_a_piece_of_music_is_no_video(tmp_path):
    path = cover_art(tmp_path / "music.mp3")
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    refused(path, "no video stream")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read as a video"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "cannot be read as a video"),
        (b'{"error": "not found"}', "cannot be read as a video"),
        (np.random.default_rng(1).bytes(100_000), "cannot be read|no frame|no video stream"),
        (b"\0" * 100_000, "cannot be read|no frame|no video stream"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "cannot be read as a video"),
        (b"ffconcat version 1.0\nfile 'plain.mp4'\n", "playlist|cannot be read"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nplain.mp4\n#EXT-X-ENDLIST\n", "playlist|cannot be read"),
    ],
    ids=["empty", "html", "json", "random", "zeros", "git_lfs", "concat", "hls"],
)
def test_what_is_called_a_video_and_is_none_is_refused(content, reason, tmp_path):
    write(tmp_path / "plain.mp4", count=2)
    for path in (tmp_path / "clip.mp4", tmp_path / "clip.m3u8"):
        path.write_bytes(content)
        refused(path, reason)
    refused(content, reason)


def test_an_mp4_whose_table_of_contents_is_missing_is_refused(made, tmp_path):
    content = made("plain.mp4").read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(content[: content.rindex(b"moov") - 4])
    refused(path, "cannot be read as a video")


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    pipe, loop = tmp_path / "pipe.mp4", tmp_path / "loop.mp4"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    start = time.monotonic()
    refused(pipe, "no regular file")
    refused(Path("/dev/zero"), "no regular file")
    refused("/dev/null", "no regular file")
    refused(loop, "cannot be opened .*symbolic links")
    refused(tmp_path / "clip.mp4" / "clip.mp4", "no such file")
    refused("clip\0.mp4", "cannot be opened .*null")
    refused("clip" * 1000, "cannot be opened .*too long")
    refused(tmp_path, "holds no pictures")
    (tmp_path / "pictures").mkdir()
    os.mkfifo(tmp_path / "pictures" / "frame_1.png")
    refused(tmp_path / "pictures", "holds no pictures")
    refused([tmp_path / "pictures" / "frame_1.png"], "is no picture")
    assert time.monotonic() - start < 2


def test_a_file_without_permission_is_refused(made, tmp_path):
    path = tmp_path / "plain.mp4"
    path.write_bytes(made("plain.mp4").read_bytes())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    refused(path, "[Pp]ermission")


def test_a_symbolic_link_is_followed(made, tmp_path):
    (tmp_path / "link.mp4").symlink_to(made("plain.mp4"))
    assert record_of(tmp_path / "link.mp4")["unique_frames"] == 10


@pytest.mark.parametrize("name", ["12:30.mp4", "concat:a|b.mp4", "100%.mp4", "%d.mp4", "a b#?&.mp4", "ein Märchen.mp4"])
def test_a_file_may_have_any_name(name, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(made("plain.mp4").read_bytes())
    assert record_of(name)["unique_frames"] == 10


class Once(io.RawIOBase):
    """A stream that cannot seek, like a pipe or a download."""

    def readable(self):
        return True

    def readinto(self, buffer):
        return 0


def test_bytes_and_open_files_give_the_frames_of_their_path(made):
    for name in ("plain.mp4", "b_frames.mkv", "b_frames.ts", "raw.h264"):
        path = made(name)
        expected = [dynimg.image.tobytes() for dynimg in compose(path, SMALL)]
        with path.open("rb") as file:
            file.read(100)  # wherever it stands
            sources = [path.read_bytes(), bytearray(path.read_bytes()), io.BytesIO(path.read_bytes()), file, str(path)]
            for source in sources:
                assert [dynimg.image.tobytes() for dynimg in compose(source, SMALL)] == expected
            assert not file.closed


def test_file_objects_that_cannot_be_used_are_refused_clearly(made):
    closed = made("plain.mp4").open("rb")
    closed.close()
    refused(closed, "closed")
    refused(Once(), "cannot seek")
    with made("plain.mp4").open(encoding="latin-1") as text:
        refused(text, "opened as text")


def test_a_file_object_that_breaks_off_ends_in_frames_or_a_reason(made):
    class Breaking(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 3000:
                raise OSError("connection lost")
            return super().read(min(size, 500))

    assert record_of(Breaking(made("faststart.mp4").read_bytes()))["damaged"]
    refused(Breaking(made("plain.mp4").read_bytes()), "connection lost")


def test_the_time_limit_ends_a_long_walk(tmp_path):
    path = write(tmp_path / "plain.mp4", Kind(options={"g": "999"}), count=400, height=240, width=320)
    for seconds in (0, 1e-9, 1e-4, 1e-2):
        start = time.monotonic()
        refused(path, "timeout_seconds", limits=VideoLimits(timeout_seconds=seconds))
        assert time.monotonic() - start < 1
    with open_video(path, limits=VideoLimits(timeout_seconds=0.3)) as video:
        time.sleep(0.3)
        with pytest.raises(VideoError, match=r"timeout_seconds=0\.3"):
            video.frames_at([video.index.last])


@pytest.mark.parametrize("name", ["plain.mp4", "b_frames.ts", "raw.h264"])
def test_packets_and_pixels_are_limited(name, made):
    refused(made(name), "max_packets=10 packets", limits=VideoLimits(max_packets=10))
    refused(made(name), "96 x 64 pixels .*max_pixels=6000", limits=VideoLimits(max_pixels=6000))
    record_of(made(name), limits=VideoLimits(max_packets=4 * FRAMES, max_pixels=6144))


def test_a_frame_that_outgrows_the_limit_in_the_middle_is_refused(tmp_path):
    small = write(tmp_path / "b_frames.ts").read_bytes()
    large = write(tmp_path / "large.ts", KINDS["b_frames.ts"], height=80, width=128).read_bytes()
    refused(small + large, "128 x 80 pixels", limits=VideoLimits(max_pixels=6144))


def test_wide_pixels_count_as_they_are_shown(tmp_path):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        encode(container, "libx264", enumerate(moving_square(2)), sample_aspect_ratio=Fraction(20, 1))
    refused(path, "max_pixels", limits=VideoLimits(max_pixels=160 * 120 * 10))


def test_a_copy_into_another_container_keeps_the_frames(made, tmp_path):
    source = made("b_frames.mp4")
    for suffix, options in (("mkv", {}), ("ts", {}), ("flv", {}), ("mp4", {"movflags": "frag_keyframe+empty_moov"})):
        path = copied(tmp_path / f"copy.{suffix}", source, **options)
        pairs = zip(clocked(path), clocked(source), strict=True)
        assert all(np.array_equal(a, b) for (*_, a), (*_, b) in pairs)
        starts = [start for start, *_ in clocked(path)]
        with open_video(path) as video:
            assert_frames_of_a_full_decode(video, clocked(path), starts[1::3])


def test_a_fast_start_copy_is_the_same_clip(tmp_path):
    assert record_of(faststart(tmp_path / "fast.mp4"))["path"] == "seek"
