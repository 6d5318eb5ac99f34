"""compose(): every frame lands in its rectangle, and nowhere else."""

import json

import numpy as np
import pytest
import torch
from conftest import moving_square
from PIL import Image

from dynimg_plugin import DynImgConfig, DynImgLayout, compose
from dynimg_plugin.composition import GREY, fit
from dynimg_plugin.coordinates import CoordinateTable
from dynimg_plugin.layout import Rect
from dynimg_plugin.pooling import pool_tokens
from dynimg_plugin.video import Frame, open_video
from dynimg_plugin.video.write import write_video

TOWERS = [(27, 14), (24, 14), (27, 4)]


def pixels(dynimg):
    return np.stack([np.asarray(image) for image in dynimg.images])


def same(first, second):
    return all(np.array_equal(pixels(one), pixels(two)) for one, two in zip(first, second, strict=True))


def colour(index):
    """Frame `index` of constant_frames: a colour that no other frame has, and that is not the grey of letterboxes."""
    return np.array([5 * index, 255 - 5 * index, 40], np.uint8)


@pytest.fixture(scope="module")
def constant_frames():
    """40 frames of one colour each; at fps=1 frame i is shown at second i."""
    return np.stack([np.broadcast_to(colour(index), (30, 40, 3)) for index in range(40)])


@pytest.mark.parametrize(("grid", "patch_size"), TOWERS)
@pytest.mark.parametrize(("fusion", "canvases"), [("canvas", 1), ("after", 5), ("none", 1)])
def test_a_video_becomes_square_rgb_images_of_the_towers_patches(fusion, canvases, grid, patch_size, constant_frames):
    config = DynImgConfig(num_images=3, fusion=fusion, grid=grid, patch_size=patch_size)
    dynimgs = compose(constant_frames, config)
    assert len(dynimgs) == 3
    for dynimg in dynimgs:
        assert [image.size for image in dynimg.images] == [(grid * patch_size, grid * patch_size)] * canvases
        assert {image.mode for image in dynimg.images} == {"RGB"}
        assert dynimg.image is dynimg.images[0]


@pytest.mark.parametrize("fusion", ["canvas", "tokens", "after", "none"])
@pytest.mark.parametrize("prompts", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize(("grid", "patch_size"), TOWERS)
def test_the_places_tile_the_images_on_patch_borders(grid, patch_size, prompts, fusion, constant_frames):
    config = DynImgConfig(num_images=1, num_prompts=prompts, fusion=fusion, grid=grid, patch_size=patch_size)
    (dynimg,) = compose(constant_frames, config)
    covered = np.zeros(pixels(dynimg).shape[:3], int)
    for frame in dynimg.frames:
        place = frame.rectangle
        assert all(edge % patch_size == 0 for edge in (place.x, place.y, place.w, place.h))
        covered[frame.canvas, place.rows, place.columns] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("fusion", ["canvas", "tokens", "after", "none"])
@pytest.mark.parametrize("prompts", [1, 2, 3, 4, 6, 12])
def test_a_frames_colour_fills_its_place_and_nothing_else(prompts, fusion, constant_frames):
    config = DynImgConfig(num_images=2, num_prompts=prompts, fusion=fusion, patch_size=4)
    for dynimg in compose(constant_frames, config):
        expected = np.zeros_like(pixels(dynimg))
        for frame in dynimg.frames:
            place = frame.rectangle
            expected[frame.canvas, place.rows, place.columns] = colour(int(frame.pts_seconds))
        assert np.array_equal(pixels(dynimg), expected)


def test_the_key_frame_lies_above_its_prompts_in_time_order(constant_frames):
    (dynimg,) = compose(constant_frames, DynImgConfig(num_images=1))
    assert [(frame.role, frame.t) for frame in dynimg.frames] == [("key", 0), *(("prompt", t) for t in (-2, -1, 1, 2))]
    assert [frame.rectangle for frame in dynimg.frames] == [
        Rect(0, 0, 280, 378),
        Rect(280, 0, 98, 98),
        Rect(280, 98, 98, 98),
        Rect(280, 196, 98, 84),
        Rect(280, 280, 98, 98),
    ]
    key, *prompts = (frame.pts_seconds for frame in dynimg.frames)
    assert prompts[0] < prompts[1] < key < prompts[2] < prompts[3]


@pytest.mark.parametrize("fusion", ["canvas", "tokens", "after", "none"])
@pytest.mark.parametrize("prompts", [1, 2, 4, 6, 12])
@pytest.mark.parametrize("grid", [24, 27, 28])
def test_the_picture_and_the_coordinates_agree_on_every_place(grid, prompts, fusion):
    """The further right and down a pixel of the frame lies, the more red and green it is: colours are coordinates."""
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (256, 256))
    frame = np.stack((ramp, ramp.T, np.zeros_like(ramp)), -1)
    config = DynImgConfig(num_images=1, num_prompts=prompts, fusion=fusion, grid=grid, patch_size=8)
    layout = DynImgLayout.from_config(config)
    (dynimg,) = compose([frame] * 20, config)
    patches = torch.tensor(pixels(dynimg)).unflatten(1, (layout.rows, 8)).unflatten(3, (grid, 8))
    colours = pool_tokens(patches.double().mean((2, 4)).flatten(1, 2)[None], layout)[0]
    key = layout.regions[0].cells
    hw = colours[:, [1, 0]] / 255 * torch.tensor([key.h, key.w]) - 0.5
    torch.testing.assert_close(hw.float(), CoordinateTable.from_layout(layout).hw, atol=0.05, rtol=0)


def test_the_key_frame_is_the_decoded_frame_resized_once(clip):
    video = open_video(clip)
    for dynimg in compose(clip):
        key = dynimg.frames[0]
        (frame,) = video.frames_at([round(key.pts_seconds / video.index.tick_seconds)])
        expected = fit(frame, 280, 378).permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(dynimg.image)[:280], expected)


@pytest.mark.parametrize(
    ("height", "width", "aspect", "inner"),
    [
        (50, 100, "stretch", (60, 60)),
        (50, 100, "auto", (60, 60)),
        (50, 100, "keep", (30, 60)),
        (100, 50, "auto", (60, 60)),
        (100, 50, "keep", (60, 30)),
        (30, 120, "stretch", (60, 60)),
        (30, 120, "auto", (30, 60)),
        (30, 120, "keep", (15, 60)),
        (120, 30, "auto", (60, 30)),
        (120, 30, "keep", (60, 15)),
        (70, 70, "keep", (60, 60)),
        (1, 300, "keep", (1, 60)),
    ],
)
def test_aspect_limits_the_stretch_and_letterboxes_the_rest_in_the_middle(height, width, aspect, inner):
    box = fit(Frame(np.full((height, width, 3), 255, np.uint8), 0), 60, 60, aspect)
    assert set(box.unique().tolist()) <= {GREY, 255}
    ys, xs = np.nonzero(box[0].numpy() == 255)
    assert (np.ptp(ys) + 1, np.ptp(xs) + 1) == inner
    assert len(ys) == inner[0] * inner[1]
    assert abs((60 - 1 - ys.max()) - ys.min()) <= 1
    assert abs((60 - 1 - xs.max()) - xs.min()) <= 1


def test_keep_uses_all_of_a_place_with_the_frames_own_shape():
    assert (fit(Frame(np.full((40, 60, 3), 255, np.uint8), 0), 20, 30, "keep") == 255).all()


@pytest.mark.parametrize("aspect", ["stretch", "auto", "keep"])
def test_aspect_reaches_the_picture(aspect):
    frames = np.full((20, 160, 40, 3), 255, np.uint8)
    image = np.asarray(compose(frames, DynImgConfig(aspect=aspect))[0].image)
    assert (image == GREY).any() == (aspect != "stretch")


@pytest.mark.parametrize(("aspect", "sampling"), [("stretch", "uniform"), ("auto", "auto")])
def test_all_sources_of_the_same_frames_give_the_same_pictures(aspect, sampling, video_array, tmp_path):
    config = DynImgConfig(aspect=aspect, sampling=sampling)
    for index, frame in enumerate(video_array):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    expected = compose(video_array, config)
    for source in (torch.from_numpy(video_array), [Image.fromarray(frame) for frame in video_array], tmp_path):
        assert same(compose(source, config), expected)


def test_a_path_may_be_text(clip):
    assert same(compose(str(clip)), compose(clip))


@pytest.mark.parametrize("fps", [1, 12.5])
def test_fps_is_the_clock_of_frames_without_one(fps, video_array):
    slow, given = compose(video_array), compose(video_array, fps=fps)
    assert same(slow, given)
    for one, two in zip(slow, given, strict=True):
        assert [f.pts_seconds / fps for f in one.frames] == pytest.approx([f.pts_seconds for f in two.frames])


def test_without_a_seed_the_same_frames_are_chosen_each_time(video_array):
    assert same(compose(video_array), compose(video_array))


def test_a_seed_draws_prompts_and_can_be_repeated(video_array):
    drawn = compose(video_array, seed=1)
    assert same(drawn, compose(video_array, seed=1))
    assert not same(drawn, compose(video_array, seed=2))
    assert not same(drawn, compose(video_array))
    assert [dynimg.frames[0] for dynimg in drawn] == [dynimg.frames[0] for dynimg in compose(video_array)]


def test_a_file_of_twenty_frames_shows_each_of_them_once_in_order(tmp_path):
    path = write_video(tmp_path / "short.mp4", moving_square(20), fps=16)
    dynimgs = compose(path)
    assert [[frame.pts_seconds * 16 for frame in sorted(d.frames, key=lambda f: f.t)] for d in dynimgs] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [10, 11, 12, 13, 14],
        [15, 16, 17, 18, 19],
    ]


@pytest.mark.parametrize(
    ("name", "iframes", "used"), [("clip", 6, 6), ("many_iframes_clip", 32, 20), ("one_iframe_clip", 1, 1)]
)
def test_the_record_counts_the_iframes_there_are_and_those_used(name, iframes, used, request):
    path = request.getfixturevalue(name)
    dynimgs = compose(path)
    assert dynimgs[0].record == {
        "source": str(path),
        "sampling": "auto",
        "index": "hop",
        "path": "seek",
        "iframes_in_video": iframes,
        "frames": 20,
        "iframes_used": used,
        "unique_frames": 20,
        "corrupt_frames": 0,
        "damaged": False,
    }
    assert sum(frame.is_iframe for dynimg in dynimgs for frame in dynimg.frames) == used
    assert all(dynimg.record == dynimgs[0].record for dynimg in dynimgs)


def test_the_record_tells_repeated_frames(video_array):
    record = compose(video_array[:3])[0].record
    assert (record["frames"], record["unique_frames"], record["index"]) == (20, 3, "frames")


def test_the_iframe_policy_shows_iframes_alone(clip):
    dynimgs = compose(clip, DynImgConfig(sampling="iframe"))
    assert all(frame.is_iframe for dynimg in dynimgs for frame in dynimg.frames)
    assert dynimgs[0].record["unique_frames"] == 6


@pytest.mark.parametrize("source", ["clip", "video_array"])
def test_everything_but_the_pixels_goes_through_json(source, request):
    (dynimg, *_) = compose(request.getfixturevalue(source))
    told = json.loads(json.dumps(dynimg.to_dict()))
    assert told["record"] == dynimg.record
    assert [frame["t"] for frame in told["frames"]] == [0, -2, -1, 1, 2]
    assert told["frames"][0]["rectangle"] == {"y": 0, "x": 0, "h": 280, "w": 378}
