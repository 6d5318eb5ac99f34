"""Each family's own way: where DynImgs enter, how they are written, what its rotary embedding is."""

from __future__ import annotations

import inspect
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from modelling import FAMILIES, features_of, fresh, noise_video, patched, pixels_of, rotary
from peft import LoraConfig, get_peft_model
from PIL import Image
from typer.testing import CliRunner

from dynimg_plugin import DynImgConfig, DynImgProcessor, apply_dynimg, cli, load
from dynimg_plugin.compat import bare, image_features, reads_newest_checkpoints, rope_parameters, takes_token_types
from dynimg_plugin.families import find_patch
from dynimg_plugin.patches import smolvlm
from dynimg_plugin.rope import probe
from dynimg_plugin.tiny import Kit, build_from, write_tiny

ROOT = Path(__file__).parents[1]

TILING = ("llava_next", "llava_next_video", "llava_onevision")  # their classes encode tiles, not one picture
MROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")
# What stands between two DynImgs, and around them, in each family that writes more than placeholders:
WRITTEN = {
    "qwen2_vl": ("<|vision_start|>", "<|vision_end|><|vision_start|>", "<|vision_end|>"),
    "glm4v": ("<|begin_of_image|>", "<|end_of_image|><|begin_of_image|>", "<|end_of_image|>"),
    "internvl": ("<img>", "</img><img>", "</img>"),
    "idefics3": (
        "<fake_token_around_image><global-img>",
        "<fake_token_around_image><fake_token_around_image><global-img>",
        "<fake_token_around_image>",
    ),
    "gemma3": ("\n\n<start_of_image>", "<end_of_image>\n\n\n\n<start_of_image>", "<end_of_image>\n\n"),
    "mistral3": ("", "[IMG_END]", "[IMG_END]"),
}


def picture(side: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.oldest
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in TILING])
@torch.no_grad()
def test_a_dynimg_is_encoded_as_the_family_encodes_a_picture(family):
    """The family's own image processor and get_image_features() against ours, on a picture of the DynImg's size."""
    model, base = fresh(family)
    processor, core = DynImgProcessor(base), model.model
    pictures = [picture(processor.image_size, seed) for seed in range(4)]
    native = base.image_processor(images=pictures, return_tensors="pt")
    known = inspect.signature(type(core).get_image_features).parameters
    given = {name: value for name, value in native.items() if name in known and not name.startswith("pixel_values")}
    if family == "vipllava" and "vision_feature_layer" in known:  # its forward() hands the layers on
        given["vision_feature_layer"] = core.config.vision_feature_layer
    expected = image_features(core, pixels_of(native), **given)
    expected = expected if isinstance(expected, torch.Tensor) else torch.cat(tuple(expected))
    pixels = processor(text="What?", images=pictures, return_tensors="pt")[processor.pixels].flatten(0, -4)
    encoded = find_patch(family).encode(core, pixels)
    ours = encoded[0] if isinstance(encoded, tuple) else encoded
    assert ours.shape[1] == processor.config.grid**2
    torch.testing.assert_close(ours.flatten(0, 1), expected.reshape(-1, ours.shape[-1]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_model_and_processor_agree_on_the_cells(family):
    model, base = fresh(family)
    config = DynImgProcessor(base).config
    patch = find_patch(family)
    assert patch.tower(model.config) == (config.grid, config.patch_size)
    assert config.grid in patch.released or family == "smolvlm"  # there the tiny one is larger, to take the defaults


@pytest.mark.oldest
@pytest.mark.parametrize("family", FAMILIES)
def test_the_patch_says_what_its_rotary_embedding_is(family):
    model, _ = fresh(family)
    patch = find_patch(family)
    base = model.model.get_submodule(patch.language_model).get_submodule(patch.rotary)
    sections = rope_parameters(model.config.get_text_config()).get("mrope_section")
    layout = probe(base)[0] if family != "glm4v" or takes_token_types() else "interleaved"  # there by its attention
    assert patch.rope == layout + (", M-RoPE" if sections else "")


@pytest.mark.oldest
@pytest.mark.parametrize("family", WRITTEN)
def test_a_dynimg_is_written_as_the_family_writes_a_picture(family):
    processor = DynImgProcessor(fresh(family)[1], DynImgConfig(num_images=2))
    before, between, after = WRITTEN[family]
    token = processor.placeholders.token(processor.base)
    row = token * 12
    one = "[IMG_BREAK]".join([row] * 12) if family == "mistral3" else row * 12
    text = processor.tokenizer.decode(processor(text="What?", videos=noise_video())["input_ids"][0])
    assert f"{before}{one}{between}{one}{after}" in text
    assert text.count(token) == 288


@pytest.mark.parametrize("family", WRITTEN)
def test_separators_lie_at_zero(family):
    model, base = fresh(family)
    inputs = DynImgProcessor(base)(text="What?", videos=noise_video(), return_tensors="pt", return_coordinates=True)
    visual = inputs["input_ids"] == model.config.image_token_id
    coordinates = inputs["rope4d_coords"]
    assert not coordinates[~visual].any()
    per_image = coordinates[visual].unflatten(0, (4, 144))
    assert torch.equal(per_image[0], per_image[3])
    assert per_image[0, :, 0].unique().tolist() == [-2, -1, 0, 1, 2]


@pytest.mark.oldest
@pytest.mark.parametrize("family", MROPE)
def test_the_familys_own_positions_see_four_square_images(family):
    """M-RoPE: every DynImg is a 12 x 12 image of its own; rows and columns run, time stands still within it."""
    model, base = fresh(family)
    inputs = DynImgProcessor(base)(text="What?", videos=noise_video(), return_tensors="pt")
    inputs.pop("pixel_values")
    positions, _ = model.model.get_rope_index(**inputs)
    visual = positions[:, 0][:, inputs["input_ids"][0] == model.config.image_token_id].unflatten(1, (4, 12, 12))
    time, rows, columns = visual - visual[:, :, :1, :1]
    assert not time.any()
    assert torch.equal(rows, torch.arange(12)[:, None].expand(4, 12, 12))
    assert torch.equal(columns, torch.arange(12).expand(4, 12, 12))
    assert (visual[0, 1:, 0, 0] > visual[0, :-1, 0, 0]).all()


@pytest.mark.oldest
@torch.no_grad()
def test_deepstack_layers_get_features_too():
    model, processor = patched("qwen3_vl")
    inputs = processor(text="What?", videos=noise_video(), return_tensors="pt")
    _, deeper = bare(features_of(model, inputs))
    assert [(layer[0] if isinstance(layer, list) else layer).shape for layer in deeper] == [(576, 64)]
    before = model(**inputs).logits
    for parameter in model.model.visual.deepstack_merger_list.parameters():
        parameter.zero_()
    assert not torch.equal(model(**inputs).logits, before)


@torch.no_grad()
def test_gemma_reads_a_dynimg_in_both_directions():
    model, processor = patched("gemma3")
    inputs = processor(text="What?", videos=noise_video(), return_tensors="pt")
    assert torch.equal(inputs["token_type_ids"].bool(), inputs["input_ids"] == processor.image_token_id)
    first = inputs["token_type_ids"][0].nonzero()[0]
    both = model(**inputs).logits[0, first]
    causal = model(**{**inputs, "token_type_ids": torch.zeros_like(inputs["token_type_ids"])}).logits[0, first]
    assert not torch.equal(both, causal)


@pytest.mark.parametrize("fusion", ["after", "none"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "idefics3", "mistral3", "perception_lm"])
@torch.no_grad()
def test_other_fusions_keep_144_tokens_per_dynimg(family, fusion):
    model, processor = patched(family, DynImgConfig(fusion=fusion, num_images=2))
    inputs = processor(text="What?", videos=noise_video(), return_tensors="pt")
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 288
    assert model(**inputs).logits.isfinite().all()


def test_a_tower_with_fewer_tokens_than_the_grid_is_refused_with_the_way_out():
    pytest.importorskip("num2words")
    kit = Kit()
    model, base = build_from(kit, *smolvlm.tiny(kit, cells=8))
    with pytest.raises(ValueError, match=r"8 x 8 patches, too few to pool to 12 x 12.*pooled_size <= 8"):
        apply_dynimg(model)
    config = DynImgConfig(pooled_size=8)
    inputs = DynImgProcessor(base, config)(text="What?", videos=noise_video(), return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 256
    assert apply_dynimg(model, config)(**inputs).logits.isfinite().all()


@pytest.mark.oldest
@pytest.mark.parametrize("family", ["qwen2_5_vl", "idefics3", "gemma3"])
def test_an_adapter_with_theta_comes_back(family, tmp_path):
    base = write_tiny(family, tmp_path / "base")
    model, processor = load(base)
    inside = find_patch(family).language_model
    lora = LoraConfig(r=2, target_modules=rf".*{inside}\..*\.(q|v)_proj", modules_to_save=["rotary_emb"])
    trained = get_peft_model(model, lora).eval()
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            assert inside in name
            parameter.data += 0.1
    trained.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    inputs = processor(text="What?", videos=noise_video(), return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(load(base, tmp_path / "adapter")[0](**inputs).logits, trained(**inputs).logits)
    with_budget = replace(processor.config, keep=0.5)
    if "M-RoPE" in find_patch(family).rope and not reads_newest_checkpoints():
        with pytest.raises(ValueError, match=r"use keep=1.0, or transformers 5"):
            load(base, tmp_path / "adapter", with_budget)
        return
    assert load(base, tmp_path / "adapter", with_budget)[1].config == with_budget


def test_theta_counts_the_frequencies_that_turn():
    assert len(rotary(patched("glm4v")[0]).theta_t) == 4  # a partial rotary: 8 of 16 dimensions
    assert len(rotary(patched("qwen2_vl")[0]).theta_t) == 8


def test_the_page_of_families_is_the_one_that_the_script_makes():
    pytest.importorskip("num2words")
    pytest.importorskip("timm")
    if f"transformers=={transformers.__version__}" not in (ROOT / "constraints.txt").read_text("utf-8").split():
        pytest.skip("the page is made with the newest transformers")
    script = runpy.run_path(str(ROOT / "docs" / "make_families.py"))
    assert (ROOT / "docs" / "families.md").read_text("utf-8") == script["page"]()


@pytest.mark.parametrize("family", FAMILIES)
def test_ask_answers_about_a_real_file(family, clip, tmp_path):
    folder = write_tiny(family, tmp_path / family)
    arguments = ["ask", str(clip), "What moves?", "--model", str(folder), "--device", "cpu", "--max-new-tokens", "3"]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout.strip()
