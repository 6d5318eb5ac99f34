"""The video path: an index without decoding, then exactly the frames that a full decode shows."""

import struct
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
from conftest import moving_square
from PIL import Image, ImageFile

from dynimg_plugin import DynImgConfig, VideoError, compose
from dynimg_plugin.composition import fit
from dynimg_plugin.video import Clip, open_video
from dynimg_plugin.video.write import write_video

CODECS = {  # file name -> codec, pixel format, options
    "b_frames.mp4": ("libx264", "yuv420p", {"bf": "3", "b_strategy": "0"}),
    "b_frames.mkv": ("libx264", "yuv420p", {"bf": "3", "b_strategy": "0"}),
    "transport.ts": ("mpeg2video", "yuv420p", {}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"deadline": "realtime", "cpu-used": "8"}),
    "animated.gif": ("gif", "rgb8", {}),
}
IN_THIS_BUILD = [name for name, (codec, *_) in CODECS.items() if codec in av.codecs_available]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name of CODECS -> a file of 48 frames, I-frames 12 apart."""
    folder = tmp_path_factory.mktemp("codecs")

    def write(name):
        codec, pix_fmt, options = CODECS[name]
        frames = moving_square(48, 96, 128)
        return write_video(folder / name, frames, fps=16, codec=codec, gop=12, options=options, pix_fmt=pix_fmt)

    return write


def full_decode(path):
    """(pts, key frame or not, RGB) of every frame, by PyAV alone."""
    with av.open(str(path)) as container:
        return [(f.pts, bool(f.key_frame), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


def faststart(path):
    """An mp4 whose table of contents comes first, as files for the web have it."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        encode(container, "libx264", ((index, frame) for index, frame in enumerate(moving_square())))
    return path


def encode(container, codec, timed_frames, **settings):
    stream = container.add_stream(codec, rate=16, options={"threads": "1", "sc_threshold": "0"})
    stream.width, stream.height, stream.pix_fmt, stream.gop_size = 160, 120, "yuv420p", 12
    for name, value in settings.items():
        setattr(stream if name in {"width", "height"} else stream.codec_context, name, value)
    for pts, pixels in timed_frames:
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = pts, Fraction(1, 16)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def rotated(path, source, degrees):
    """A copy of an mp4 with a display matrix that turns it clockwise."""
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    content = bytearray(source.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def audio(path, codec, sample_format, dtype):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype), format=sample_format, layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def corner_video(path):
    """Four dark frames of 96 x 64 with a bright top left corner."""
    frame = np.full((64, 96, 3), 40, np.uint8)
    frame[:16, :16] = 250
    return write_video(path, [frame] * 4)


def bright_corners(pixels):
    return [
        name for name, y, x in (("tl", 4, 4), ("tr", 4, -5), ("bl", -5, 4), ("br", -5, -5)) if pixels[y, x, 0] > 200
    ]


def read(source, **options):
    video = open_video(source, **options)
    return video.frames_at([video.index.first, video.index.last])


def refused(source, reason, **options):
    """Opening and reading `source` raises a VideoError with its path and a reason that matches."""
    with pytest.raises(VideoError, match=reason) as error:
        read(source, **options)
    assert str(error.value) == f"{error.value.path}: {error.value.reason}"
    return error.value


@pytest.mark.parametrize("name", IN_THIS_BUILD)
def test_the_index_holds_the_clock_and_the_iframes_of_a_full_decode(name, made):
    path = made(name)
    decoded, index = full_decode(path), open_video(path).index
    assert list(index.iframes) == [pts for pts, key, _ in decoded if key]
    assert (index.first, index.last) == (decoded[0][0], decoded[-1][0])
    assert index.kind in {"hop", "scan", "count"}


@pytest.mark.parametrize("name", IN_THIS_BUILD)
def test_frames_at_gives_the_pixels_of_a_full_decode(name, made):
    path = made(name)
    decoded, video = full_decode(path), open_video(path)
    frames = video.frames_at([pts for pts, *_ in decoded])
    assert len(frames) == 48
    for frame, (pts, key, pixels) in zip(frames, decoded, strict=True):
        assert np.array_equal(frame.pixels, pixels)
        assert frame.is_iframe == key
        assert frame.pts_seconds == pytest.approx((pts - decoded[0][0]) * video.index.tick_seconds)


def test_the_clip_with_b_frames_really_has_some(made):
    with av.open(str(made("b_frames.mp4"))) as container:
        kinds = [frame.pict_type for frame in container.decode(video=0)]
    assert av.video.frame.PictureType.B in kinds


def test_the_shared_clips_have_the_iframes_that_they_promise(clip, many_iframes_clip, one_iframe_clip):
    counts = [len(open_video(path).index.iframes) for path in (clip, many_iframes_clip, one_iframe_clip)]
    assert counts == [6, 32, 1]


def test_frames_come_in_the_order_asked_for_and_as_often(clip):
    video = open_video(clip)
    step = video.index.frame_ticks
    frames = video.frames_at([9 * step, 3 * step, 9 * step, 0])
    assert [round(frame.pts_seconds * 16) for frame in frames] == [9, 3, 9, 0]


@pytest.mark.parametrize(("ticks", "frame"), [(-5000, 0), (1, 0), (1023, 0), (1024, 1), (1025, 1), (10**9, 63)])
def test_between_two_frames_the_earlier_one_is_shown(ticks, frame, clip):
    video = open_video(clip)
    assert video.index.frame_ticks == 1024
    assert video.frames_at([ticks])[0].pts_seconds * 16 == frame


def test_reading_twice_gives_the_same_pixels(clip):
    video = open_video(str(clip))
    first, second = (video.frames_at([30 * 1024])[0].pixels for _ in range(2))
    assert np.array_equal(first, second)


def test_with_uneven_times_the_clock_decides_and_not_the_count(tmp_path):
    path = tmp_path / "uneven.mp4"
    times = [0, 1, 2, 20, 40, 41]
    with av.open(str(path), "w") as container:
        encode(container, "libx264", zip(times, moving_square(6), strict=True))
    video, decoded = open_video(path), full_decode(path)
    (frame,) = video.frames_at([round(30 / 16 / video.index.tick_seconds)])
    assert frame.pts_seconds == 20 / 16
    assert np.array_equal(frame.pixels, decoded[3][2])


def test_an_edit_list_hides_the_iframe_before_it_but_not_what_it_is_needed_for(made, tmp_path):
    """The first 20 of 48 frames are cut away as phones do it: they stay in the file and are only not shown."""
    whole = made("b_frames.mp4")
    content = bytearray(whole.read_bytes())
    entry = content.index(b"elst") + 12
    duration, start = struct.unpack_from(">Ii", content, entry)
    struct.pack_into(">Ii", content, entry, duration * 28 // 48, start + 20 * 1024)
    path = tmp_path / "edited.mp4"
    path.write_bytes(content)
    video, decoded = open_video(path), full_decode(whole)
    assert video.index.iframes == (4 * 1024, 16 * 1024)
    assert (video.index.first, video.index.last) == (0, 27 * 1024)
    for frame, (_, _, pixels) in zip(video.frames_at(range(0, 28 * 1024, 1024)), decoded[20:], strict=True):
        assert np.array_equal(frame.pixels, pixels)


def test_times_count_from_the_first_frame_of_a_stream_that_starts_late(made):
    video = open_video(made("transport.ts"))
    assert video.index.first > 0
    assert video.frames_at([video.index.first])[0].pts_seconds == 0


def test_raw_h264_without_times_is_counted_in_frames(tmp_path):
    path = write_video(tmp_path / "raw.h264", moving_square(48), gop=12, options={"bf": "2"})
    decoded, video = full_decode(path), open_video(path)
    assert {pts for pts, *_ in decoded} == {None}
    assert video.index.iframes == (0, 12, 24, 36)
    assert (video.index.first, video.index.last) == (0, 47)
    for frame, (_, _, pixels) in zip(video.frames_at(range(48)), decoded, strict=True):
        assert np.array_equal(frame.pixels, pixels)


@pytest.mark.parametrize(
    ("degrees", "corner", "shape"), [(90, "tr", (96, 64)), (180, "br", (64, 96)), (270, "bl", (96, 64))]
)
def test_a_rotated_recording_is_shown_upright(degrees, corner, shape, tmp_path):
    path = rotated(tmp_path / "turned.mp4", corner_video(tmp_path / "plain.mp4"), degrees)
    (frame,) = open_video(path).frames_at([0])
    assert frame.pixels.shape[:2] == shape
    assert bright_corners(frame.pixels) == [corner]


def test_wide_pixels_are_made_square_before_and_after_rotation(tmp_path):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        encode(container, "libx264", enumerate(moving_square(2)), sample_aspect_ratio=Fraction(2, 1))
    assert open_video(path).frames_at([0])[0].pixels.shape == (120, 320, 3)
    turned = rotated(tmp_path / "turned.mp4", path, 90)
    assert open_video(turned).frames_at([0])[0].pixels.shape == (320, 120, 3)


def test_a_picture_is_a_video_of_one_frame(tmp_path):
    Image.new("RGB", (32, 24), (10, 20, 30)).save(tmp_path / "one.png")
    (frame,) = open_video(tmp_path / "one.png").frames_at([0])
    assert (frame.pixels == (10, 20, 30)).all()


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "missing.mp4"
    error = refused(path, "no such file")
    assert error.path == str(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>not found</html>", np.random.default_rng(0).bytes(4096)],
    ids=["empty", "text", "random"],
)
def test_a_file_that_is_no_video_is_named(content, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    assert refused(path, "cannot be read as a video").path == str(path)


@pytest.mark.parametrize(
    ("name", "codec", "sample_format", "dtype"),
    [
        ("sound.m4a", "aac", "fltp", np.float32),
        ("sound.mp4", "aac", "fltp", np.float32),
        ("a.wav", "pcm_s16le", "s16", np.int16),
    ],
)
def test_a_file_with_sound_alone_is_named(name, codec, sample_format, dtype, tmp_path):
    path = audio(tmp_path / name, codec, sample_format, dtype)
    assert refused(path, "no video stream").path == str(path)


def test_an_mp4_without_its_table_of_contents_is_named(clip, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    assert refused(path, "cannot be read as a video").path == str(path)


def test_an_mp4_without_any_of_its_frames_is_named(tmp_path):
    path = faststart(tmp_path / "cut.mp4")
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") + 4])
    assert refused(path, "no frame|cannot be read").path == str(path)


def test_of_a_file_that_is_cut_short_the_frames_before_the_cut_are_used(tmp_path):
    path = faststart(tmp_path / "cut.mp4")
    whole = full_decode(path)
    content = path.read_bytes()
    start = content.index(b"mdat")
    path.write_bytes(content[: start + 3 * (len(content) - start) // 4])
    video = open_video(path)
    first, last = video.frames_at([0, whole[-1][0]])
    assert np.array_equal(first.pixels, whole[0][2])
    assert 2 < last.pts_seconds < 4
    assert video.damaged


def test_damage_in_the_middle_of_a_file_is_concealed_and_told(tmp_path):
    path = faststart(tmp_path / "damaged.mp4")
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat")
    third = (len(content) - start) // 3
    content[start + third : start + 2 * third] = np.random.default_rng(0).bytes(third)
    path.write_bytes(content)
    record = compose(path)[0].record
    assert record["damaged"] or record["corrupt_frames"]
    assert record["unique_frames"] > 1


def test_a_folder_of_pictures_is_read_in_the_order_of_its_numbers(tmp_path):
    for number in (10, 9, 1, 2, 100):
        Image.new("RGB", (16, 12), (number, 0, 0)).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    video = open_video(tmp_path)
    assert video.index.last == 4
    assert [frame.pixels[0, 0, 0] for frame in video.frames_at(range(5))] == [1, 2, 9, 10, 100]


def test_a_folder_without_pictures_is_named(tmp_path):
    assert refused(tmp_path, "no pictures; it may hold .*png").path == str(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.5], ids=["empty", "cut"])
def test_a_folder_with_a_broken_picture_is_named_with_it(kept, video_array, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # other libraries switch it on for the whole process
    broken = tmp_path / "frame_1.png"
    Image.fromarray(video_array[0]).save(broken)
    broken.write_bytes(broken.read_bytes()[: int(kept * broken.stat().st_size)])
    error = refused(tmp_path, "frame_1.png is no picture")
    assert error.path == str(tmp_path)


def test_arrays_tensors_and_lists_give_the_same_frames(video_array, tmp_path):
    for index, frame in enumerate(video_array[:3]):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    sources = [
        video_array[:3],
        video_array[:3].transpose(0, 3, 1, 2),
        torch.from_numpy(video_array[:3]),
        torch.from_numpy(video_array[:3]).permute(0, 3, 1, 2),
        list(video_array[:3]),
        [Image.fromarray(frame) for frame in video_array[:3]],
        tuple(frame.transpose(2, 0, 1) for frame in video_array[:3]),
        [str(tmp_path / f"{index}.png") for index in range(3)],
        tmp_path,
    ]
    for source in sources:
        frames = open_video(source).frames_at([2, 0, 1])
        assert all(np.array_equal(frame.pixels, video_array[i]) for frame, i in zip(frames, (2, 0, 1), strict=True))


def test_frames_in_memory_have_a_clock_of_their_own_and_no_iframes(video_array):
    video = open_video(video_array, fps=8)
    assert (video.index.iframes, video.index.first, video.index.last) == ((), 0, 39)
    assert [frame.pts_seconds for frame in video.frames_at([0, 4, 8])] == [0, 0.5, 1]
    assert not any(frame.is_iframe for frame in video.frames_at(range(40)))


def test_grey_and_transparent_pictures_become_rgb():
    frames = open_video([Image.new("L", (4, 4), 9), Image.new("RGBA", (4, 4), (1, 2, 3, 0))]).frames_at([0, 1])
    assert [tuple(frame.pixels[0, 0]) for frame in frames] == [(9, 9, 9), (1, 2, 3)]


def test_pixels_can_be_written_to_whatever_they_come_from(clip):
    locked = np.zeros((1, 8, 8, 3), np.uint8)
    locked.flags.writeable = False
    for source in (clip, locked, list(locked), [Image.new("RGB", (8, 8))], [Image.new("L", (8, 8))]):
        assert open_video(source).frames_at([0])[0].pixels.flags.writeable


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((4, 8, 8, 3), np.float32), r"float32 of shape \(8, 8, 3\); allowed: uint8"),
        (np.zeros((4, 8, 8, 1), np.uint8), r"uint8 of shape \(8, 8, 1\); allowed: uint8"),
        (np.zeros((4, 8, 8, 4), np.uint8), r"uint8 of shape \(8, 8, 4\); allowed: uint8"),
        ([np.zeros((8, 8), np.uint8)], r"uint8 of shape \(8, 8\); allowed: uint8"),
        (np.zeros((8, 8, 3), np.uint8), "is no video; allowed"),
        (np.zeros((0, 8, 8, 3), np.uint8), "holds no frame"),
        ([], "holds no frame"),
        (None, "is no video; allowed"),
        (7, "is no video; allowed"),
        ({"frames": []}, "is no video; allowed"),
    ],
    ids=["float", "one_channel", "four_channels", "flat", "one_frame", "no_frames", "no_list", "none", "int", "dict"],
)
def test_what_is_no_video_is_refused_with_what_is_allowed(source, reason):
    refused(source, reason)


@pytest.mark.parametrize("fps", [0, -1])
def test_a_clock_that_does_not_run_is_refused(fps, video_array):
    refused(video_array, "fps", fps=fps)


def test_a_file_is_closed_at_the_end_of_its_with_block(clip):
    with open_video(clip) as video:
        assert video.frames_at([0])[0].is_iframe
    assert video._reader._container is None


def test_a_video_error_is_a_value_error_that_keeps_path_and_reason():
    error = VideoError("clip.mp4", "no such file")
    assert isinstance(error, ValueError)
    assert (error.path, error.reason, str(error)) == ("clip.mp4", "no such file", "clip.mp4: no such file")


def test_the_iframe_policy_on_frames_without_iframes_names_the_source(video_array):
    with pytest.raises(VideoError, match=r"frames: .*needs I-frames"):
        compose(video_array, DynImgConfig(sampling="iframe"))


def burst(start, stop, count=160):
    """A still picture over which a square moves from frame `start` to frame `stop`."""
    still = next(moving_square(1))
    for number in range(count):
        frame = still.copy()
        if start <= number < stop:
            left = (number - start) * 128 // (stop - start)
            frame[70:102, left : left + 32] = (40, 40, 250)
        yield frame


def numbers(path, seed=None, **options):
    """Frame numbers of every DynImg, key frame first."""
    dynimgs = compose(path, DynImgConfig(**options), seed=seed)
    return [[round(place.pts_seconds * 16) for place in dynimg.frames] for dynimg in dynimgs]


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("gop", [250, 40])
@pytest.mark.parametrize("b_frames", ["0", "3"])
@pytest.mark.parametrize(("start", "stop", "image"), [(65, 75, 1), (85, 95, 2), (124, 136, 3)])
def test_motion_puts_the_prompts_where_the_picture_changes(start, stop, image, b_frames, gop, seed, tmp_path):
    path = write_video(tmp_path / "burst.mp4", burst(start, stop), fps=16, gop=gop, options={"bf": b_frames})
    groups = numbers(path, seed, sampling="motion")
    key, *prompts = groups[image]
    near = [number for number in prompts if (number < key) == (start < key)]
    assert len(near) == 2
    assert all(start - 1 <= number <= stop for number in near)  # the first frame after the burst shows its end
    assert [group[0] for group in groups] == [20, 60, 100, 140]


@pytest.mark.parametrize("b_frames", ["0", "3"])
@pytest.mark.parametrize("gop", [250, 40, 16])
def test_motion_spreads_the_prompts_of_a_still_clip_evenly(gop, b_frames, tmp_path):
    path = write_video(tmp_path / "still.mp4", burst(0, 0), fps=16, gop=gop, options={"bf": b_frames})
    for group in numbers(path, sampling="motion"):
        gaps = np.diff(sorted(group))
        assert gaps.min() >= 4
        assert gaps.max() <= 16


def test_motion_without_frames_between_the_iframes_is_auto(tmp_path):
    path = write_video(tmp_path / "intra.mp4", burst(65, 75), fps=16, gop=1)
    assert numbers(path, sampling="motion") == numbers(path, sampling="auto")
    assert numbers(path, 3, sampling="motion") == numbers(path, 3, sampling="auto")


def test_seeds_draw_other_prompts_with_motion_too(tmp_path):
    path = write_video(tmp_path / "burst.mp4", burst(40, 120), fps=16)
    drawn = [numbers(path, seed, sampling="motion") for seed in (None, 0, 1)]
    assert drawn == [numbers(path, seed, sampling="motion") for seed in (None, 0, 1)]
    assert drawn[0] != drawn[1] != drawn[2]


def test_the_bytes_of_iframes_do_not_count_as_motion(made):
    with open_video(made("b_frames.mp4")) as video:
        times = {time for time, _ in video.activity()}
        assert len(times) == 48 - 4
        assert not times & set(video.index.iframes)


@pytest.mark.parametrize("name", IN_THIS_BUILD)
def test_fast_between_shows_a_close_neighbour_from_the_same_group_of_pictures(name, made):
    exact, fast = open_video(made(name)), open_video(made(name), fast_between=True)
    index = exact.index
    frame = index.frame_ticks * index.tick_seconds
    times = [index.first + (index.last - index.first) * i // 60 for i in range(61)]
    for time, a, b in zip(times, exact.frames_at(times), fast.frames_at(times), strict=True):
        assert 0 <= a.pts_seconds - b.pts_seconds < 4.5 * frame
        key = max((t for t in index.iframes if t <= time), default=index.first)
        assert b.pts_seconds >= (key - index.first) * index.tick_seconds - 1e-9
    iframes = list(index.iframes)
    pairs = zip(exact.frames_at(iframes), fast.frames_at(iframes), strict=True)
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in pairs)


def landscape(height=240, width=320):
    """Sky, hills and fine texture: smooth and sharp parts, as photographs have."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width] / height
    hills = 0.6 + 0.1 * np.sin(6 * x) + 0.05 * np.sin(17 * x)
    texture = np.repeat(np.repeat(rng.normal(0, 18, (height // 4, width // 4)), 4, 0), 4, 1)
    planes = [np.where(y > hills, ground + texture, sky - 90 * y) for ground, sky in ((70, 150), (110, 190), (60, 240))]
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("ratio", [1, 2])
def test_the_fast_resize_is_close_to_the_exact_one(ratio, degrees, tmp_path):
    path = tmp_path / "plain.mp4"
    with av.open(str(path), "w") as container:
        encode(container, "libx264", [(0, landscape())], width=320, height=240, sample_aspect_ratio=Fraction(ratio))
    if degrees:
        path = rotated(tmp_path / "turned.mp4", path, degrees)
    (frame,) = open_video(path).frames_at([0])
    wide = (240, 320 * ratio)
    assert frame.shape == frame.pixels.shape[:2] == (wide[::-1] if degrees % 180 else wide)
    for height, width in ((280, 378), (98, 91), (378, 378)):
        exact, fast = (fit(frame, height, width, resize=resize) for resize in ("exact", "fast"))
        assert exact.shape == fast.shape == (3, height, width)
        assert (exact.float() - fast.float()).abs().mean() < 6


def test_a_long_file_is_indexed_by_iframes_spread_over_it(tmp_path):
    path = write_video(tmp_path / "long.mp4", moving_square(1600, 48, 64), gop=4, options={"preset": "ultrafast"})
    decoded = full_decode(path)
    every = {pts for pts, key, _ in decoded if key}
    with open_video(path) as video:
        assert video.index.kind == "sparse"
        assert set(video.index.iframes) <= every
        assert len(video.index.iframes) in range(100, 130)
        gaps = [b - a for a, b in pairwise(video.index.iframes)]
        assert max(gaps) <= 3 * min(gaps)
        assert (video.index.first, video.index.last) == (decoded[0][0], decoded[-1][0])
        times = [decoded[i][0] for i in range(1, 1600, 67)] + [*video.index.iframes[::20]]
        frames = video.frames_at(times)
        assert video.path == "seek"
    pixels = {pts: image for pts, _, image in decoded}
    assert all(np.array_equal(frame.pixels, pixels[time]) for time, frame in zip(times, frames, strict=True))
    record = compose(path)[0].record
    assert (record["index"], record["iframes_used"], record["unique_frames"]) == ("sparse", 20, 20)
    part = compose(Clip(path, 50, 58))
    assert part[0].record["iframes_in_video"] > 30
    assert all(50 <= frame.pts_seconds <= 58 for dynimg in part for frame in dynimg.frames)


@pytest.mark.parametrize("seed", [None, *range(20)])
def test_no_frame_of_a_clip_starts_after_its_end(clip, seed):
    for dynimg in compose(Clip(clip, 1.01, 2.52), seed=seed):
        assert all(0.9 < frame.pts_seconds <= 2.52 for frame in dynimg.frames)


@pytest.mark.parametrize(("start", "end"), [(0, float("inf")), (float("nan"), None), (9, None), (2, 1)])
def test_bounds_that_hold_no_frame_are_refused(clip, start, end):
    with pytest.raises(VideoError, match="start="):
        compose(Clip(clip, start, end))
