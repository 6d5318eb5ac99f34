"""Newline tokens stand where a checkpoint of the llava package was trained with them; their (t, h, w) is 0."""

from __future__ import annotations

import pytest
import torch
from modelling import AXES, fresh, noise_video, patched, randomise_theta, rotary, sharpen
from originals import write_original

from dynimg_plugin import DynImgConfig, DynImgProcessor, apply_dynimg, load
from dynimg_plugin.coordinates import CoordinateTable, token_coordinates
from dynimg_plugin.layout import NEWLINE, DynImgLayout
from dynimg_plugin.original import load_original
from dynimg_plugin.patching import dynimg_config

# Where newlines stand: tokens of a video of 4 DynImgs, and newlines among them
LAYOUTS = {"grid": (624, 48), "frame": (580, 4), "one_token": (577, 1), "no_token": (576, 0)}
every_layout = pytest.mark.parametrize("newline", LAYOUTS)
N = NEWLINE


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """newline -> folder of a tiny LLaVA-Video-Qwen2 whose config.json says so."""
    made = {}

    def write(newline):
        if newline not in made:
            made[newline] = tmp_path_factory.mktemp(newline)
            write_original(made[newline], "LLaVA-Video-Qwen2", mm_newline_position=newline)
        return made[newline]

    return write


def as_the_package_does(features, newline, layout):
    """(4, 144, c) -> (tokens, c), written from what the package says of each word."""
    images, cells, channels = features.shape
    if layout == "grid":
        rows = features.view(images, 12, 12, channels)
        return torch.cat((rows, newline.expand(images, 12, 1, -1)), 2).flatten(0, 2)
    if layout == "frame":
        return torch.cat((features, newline.expand(images, 1, -1)), 1).flatten(0, 1)
    flat = features.reshape(images * cells, channels)
    return torch.cat((flat, newline[None])) if layout == "one_token" else flat


@pytest.mark.parametrize(
    ("newline", "order"),
    [
        ("auto", (0, 1, 2, 3)),
        ("no_token", (0, 1, 2, 3)),
        ("grid", (0, 1, N, 2, 3, N)),
        ("frame", (0, 1, 2, 3, N)),
        ("one_token", (0, 1, 2, 3, 4, 5, 6, 7, N)),
    ],
)
def test_the_order_of_two_dynimgs_of_two_by_two_cells(newline, order):
    config = DynImgConfig(num_images=2, num_prompts=2, pooled_size=2, grid=8, newline=newline)
    layout = DynImgLayout.from_config(config)
    assert layout.order == order
    assert len(order) * 2 // layout.images_per_order == config.tokens_per_video


@every_layout
@pytest.mark.parametrize("t_mode", ["slot", "time"])
def test_newline_tokens_have_no_coordinates_and_cells_keep_theirs(newline, t_mode):
    def coordinates(newline, length):
        config = DynImgConfig(newline=newline, t_mode=t_mode)
        table = CoordinateTable.from_layout(DynImgLayout.from_config(config))
        ids = torch.cat((torch.zeros(2, 3), torch.ones(2, length), torch.zeros(2, 5)), 1).long()
        times = torch.arange(40.0).view(2, 4, 5) + 1 if t_mode == "time" else None
        return token_coordinates(ids, 1, table, times)

    length, newlines = LAYOUTS[newline]
    found = coordinates(newline, length)
    order = torch.tensor(DynImgLayout.from_config(DynImgConfig(newline=newline)).order).repeat(4)[:length]
    ours, plain = found[:, 3:-5], coordinates("no_token", 576)[:, 3:-5]
    assert (order == NEWLINE).sum() == newlines
    assert torch.equal(ours[:, order != NEWLINE], plain)
    assert not ours[:, order == NEWLINE].any()
    assert not found[:, :3].any()
    assert not found[:, -5:].any()


@every_layout
@torch.no_grad()
def test_a_checkpoint_gets_its_newlines_where_it_was_trained_with_them(newline, checkpoint):
    model, processor = load(checkpoint(newline))
    assert processor.config == dynimg_config(model)
    assert processor.config.newline == newline
    inputs = processor(text="What moves?", videos=noise_video(), return_tensors="pt")
    tokens, _ = LAYOUTS[newline]
    assert (inputs["input_ids"] == processor.image_token_id).sum() == tokens == processor.config.tokens_per_video
    features = model.model.get_image_features(inputs["pixel_values"]).pooler_output[0]
    plain, same_processor = load(checkpoint("no_token"))
    same = same_processor(text="What moves?", videos=noise_video(), return_tensors="pt")
    cells = plain.model.get_image_features(same["pixel_values"]).pooler_output[0].view(4, 144, -1)
    assert torch.equal(features, as_the_package_does(cells, plain.model.image_newline, newline))
    assert model(**inputs).logits.isfinite().all()


@every_layout
def test_a_training_step_a_padded_batch_and_the_cache(newline, checkpoint):
    model, processor = load(checkpoint(newline))
    sharpen(model)
    randomise_theta(model)
    one = processor(text="What moves?", videos=noise_video(), return_tensors="pt")
    model(**one, labels=one["input_ids"]).loss.backward()
    for name in AXES:
        assert getattr(rotary(model), name).grad.norm() > 0, name
    learns = model.model.image_newline.grad is not None and bool(model.model.image_newline.grad.any())
    assert learns == (newline != "no_token")
    settings = {"max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    cached = model.generate(**one, **settings)
    full = model.generate(**one, **settings, use_cache=False)
    control = model.generate(**one, **settings, rope4d_coords=torch.zeros(*one["input_ids"].shape, 3))
    assert torch.equal(cached.sequences, full.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(full.logits), atol=1e-4, rtol=0)
    assert (cached.logits[0] - control.logits[0]).abs().max() > 0.03
    videos = [noise_video(), noise_video(1)]
    batch = processor(text=["What moves?", "And what moves here?"], videos=videos, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits[0][batch["attention_mask"][0].bool()]
        torch.testing.assert_close(logits, model(**one).logits[0], atol=5e-4, rtol=0)


@torch.no_grad()
def test_the_layout_outlives_a_save_and_an_option_overrides_it(checkpoint, tmp_path):
    model, base = load_original(checkpoint("grid"))
    model.save_pretrained(tmp_path)
    base.save_pretrained(tmp_path)
    assert load(tmp_path)[1].config.newline == "grid"
    chosen, processor = load(tmp_path, config=DynImgConfig(newline="frame"))
    inputs = processor(text="What?", videos=noise_video(), return_tensors="pt")
    assert chosen.model.get_image_features(inputs["pixel_values"]).pooler_output[0].shape[0] == 580
    assert chosen(**inputs).logits.isfinite().all()


def test_a_processor_of_another_layout_is_told_what_to_do(checkpoint):
    model, base = load_original(checkpoint("grid"))
    apply_dynimg(model)
    inputs = DynImgProcessor(base)(text="What?", videos=noise_video(), return_tensors="pt")
    with pytest.raises(ValueError, match=r"576 visual tokens.*runs of 156; give DynImgProcessor.*dynimg_config"):
        model(**inputs)
    fitting = DynImgProcessor(base, dynimg_config(model))(text="What?", videos=noise_video(), return_tensors="pt")
    assert model(**fitting).logits.isfinite().all()


def test_a_checkpoint_that_says_nothing_keeps_576_tokens(tmp_path):
    write_original(tmp_path, "llava-onevision-qwen2")
    config = load(tmp_path)[1].config
    assert (config.newline, config.tokens_per_video) == ("auto", 576)


def test_flat_checkpoints_have_no_newlines_whatever_their_config_says(tmp_path):
    write_original(tmp_path, "LLaVA-1.5", mm_newline_position="grid", mm_patch_merge_type="flat")
    assert load(tmp_path)[1].config.newline == "auto"


def test_families_without_a_newline_token_refuse_it():
    with pytest.raises(ValueError, match=r"newline='frame', but LlavaForConditionalGeneration has no newline token"):
        apply_dynimg(fresh("llava")[0], DynImgConfig(newline="frame"))


def test_one_newline_per_video_asks_for_whole_videos():
    model, processor = patched("llava_next", DynImgConfig(newline="one_token"))
    dynimgs = processor.compose(noise_video())
    apart = processor(text="<image>\nWhat?", images=dynimgs, return_tensors="pt")
    twice = processor(text="<image> and <image>", videos=[[noise_video(), noise_video(1)]], return_tensors="pt")
    for inputs, tokens in ((apart, 577), (twice, 1154)):
        assert (inputs["input_ids"] == processor.image_token_id).sum() == tokens
        assert model(**inputs).logits.isfinite().all()
    with pytest.raises(ValueError, match=r"one_token.* 1 came for one image token; give whole videos"):
        processor(text="<image>" * 4, images=dynimgs)
    with pytest.raises(ValueError, match=r"one_token.* 3 came"):
        model.model.get_image_features(apart["pixel_values"][:, :3])
