"""fusion="tokens": prompts in the tower's own sequence; masked out, the key frame's bits are the plain tower's."""

from __future__ import annotations

from copy import deepcopy
from importlib.util import find_spec

import pytest
import torch
from accelerate import cpu_offload
from modelling import fresh, noise_video, ordinary_image
from peft import get_peft_model
from towers import GRID, KINDS, joined, masked, plain
from trainings import quick, speaking_base

from dynimg_plugin import DynImgConfig, DynImgProcessor, Patch, apply_dynimg, compose, describe_dynimg, remove_dynimg
from dynimg_plugin.coordinates import CoordinateTable
from dynimg_plugin.evaluation.during import evaluate_model
from dynimg_plugin.evaluation.model import LlavaDynImg
from dynimg_plugin.layout import DynImgLayout
from dynimg_plugin.loading import check_ours, load
from dynimg_plugin.pooling import pool_tokens
from dynimg_plugin.tiny import write_tiny
from dynimg_plugin.towers import HuggingFaceTower, prompt_positions
from dynimg_plugin.training import lora_config, plan, read_config
from dynimg_plugin.training.probes import check_slots

no_timm = pytest.mark.skipif(find_spec("timm") is None, reason="pip install timm")
every_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=no_timm if kind == "timm" else ()) for kind in KINDS]
)


def inputs_of(processor, seed=0, text="What moves?"):
    return processor(text=text, videos=noise_video(seed), return_tensors="pt")


def fingerprint(model):
    """Every module with its own attributes and numbers of hooks."""
    return {
        name: (type(module), set(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }


def features_of(model, pixels):
    """Projected features of all DynImgs: (m, rows * grid, c)."""
    session = model.model.dynimg
    return session.encode(model.model, pixels.flatten(0, 1))


# -- the sequence --------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_masked_out_prompts_leave_the_key_frame_the_plain_towers_bits(kind, dtype):
    apart, processor = joined(kind, prompt_attention="apart")
    joint, _ = joined(kind)
    pixels = inputs_of(processor)["pixel_values"]
    patch, side = apart.model.dynimg.patch, pixels.shape[-1]
    expected = patch.encode(plain(kind)[0].to(dtype).model, pixels[0, :, :, :side])
    key = expected.shape[1]
    assert pixels.shape[-2] > side
    assert torch.equal(features_of(apart.to(dtype), pixels)[:, :key], expected)
    seen = features_of(joint.to(dtype), pixels)[:, :key]
    assert (seen - expected).abs().max() > 1e-4  # unmasked, the key frame sees its prompts


@every_kind
@torch.no_grad()
def test_apart_is_what_a_mask_over_the_joint_sequence_computes(kind):
    apart, processor = joined(kind, prompt_attention="apart")
    joint, _ = joined(kind)
    pixels = inputs_of(processor)["pixel_values"]
    layout = joint.model.dynimg.layout
    key, row = layout.grid**2, (layout.rows - layout.grid) * layout.grid
    first = 0 if kind == "siglip" else 1  # the class token
    mask = torch.zeros(first + key + row, first + key + row)
    mask[: first + key, first + key :] = -torch.inf
    mask[first + key :, : first + key] = -torch.inf
    with masked(joint, mask):
        found = features_of(joint, pixels)
    expected = features_of(apart, pixels)
    torch.testing.assert_close(found[:, :key], expected[:, :key], atol=1e-4, rtol=0)
    if not first:  # apart, the row of prompts has a class token of its own
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(features_of(joint, pixels), expected, atol=1e-3)


@every_kind
@torch.no_grad()
def test_a_prompt_frame_changes_the_key_frames_tokens_and_its_slot_counts(kind):
    model, processor = joined(kind)
    pixels = inputs_of(processor)["pixel_values"]
    side, layout = pixels.shape[-1], model.model.dynimg.layout
    before = pool_tokens(features_of(model, pixels)[:, None], layout).unflatten(1, (12, 12))
    other = pixels.clone()
    other[..., side:, : side // 5] += 1  # within the first prompt
    after = pool_tokens(features_of(model, other)[:, None], layout).unflatten(1, (12, 12))
    assert (after - before)[:, :9].abs().max() > 1e-5
    model.model.prompt_slots.slot_embedding[0] *= -1
    moved = pool_tokens(features_of(model, pixels)[:, None], layout).unflatten(1, (12, 12))
    change = (moved - before).abs().amax((0, 3))
    assert change[9:, :3].mean() > change[9:, 3:].mean() > 0  # its own frame most, the others through attention


@every_kind
def test_gradients_reach_the_slot_embedding_with_and_without_checkpointing(kind):
    gradients = []
    for checkpointing in (False, True):
        model, processor = joined(kind)
        model.requires_grad_(False)
        slots = model.model.prompt_slots.slot_embedding.requires_grad_(True)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        inputs = inputs_of(processor)
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append(slots.grad)
    assert (gradients[0].abs().amax(1) > 0).all()  # every slot
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-9)


def test_position_embeddings_are_scaled_down_as_timm_scales_them():
    timm = pytest.importorskip("timm.layers")
    layout = DynImgLayout.from_config(DynImgConfig(fusion="tokens"))
    table = torch.randn(GRID**2, 8, generator=torch.Generator().manual_seed(0))
    row = prompt_positions(table, layout)
    assert row.shape == (7, 27, 8)
    for region in layout.regions[1:]:
        size = (region.patches.h, region.patches.w)
        expected = timm.resample_abs_pos_embed(table[None], size, num_prefix_tokens=0)
        torch.testing.assert_close(row[:, region.patches.columns].flatten(0, 1), expected[0], atol=1e-5, rtol=0)
    with pytest.raises(AssertionError):  # frames differ by slot alone: same positions, but for the 6 columns of one
        torch.testing.assert_close(row[:, :7], row[:, 14:20])
    assert torch.equal(row[:, :7], row[:, 7:14])


@torch.no_grad()
def test_clips_class_token_keeps_its_position_to_itself():
    tower = HuggingFaceTower(fresh("llava")[0].model.vision_tower)
    assert torch.equal(tower.positions(), tower.embeddings.position_embedding.weight[1:])


# -- the whole model -----------------------------------------------------------------------------------------------


@every_kind
@torch.no_grad()
def test_a_video_has_576_tokens_with_the_coordinates_of_the_canvas(kind):
    model, processor = joined(kind, num_images=4)
    inputs = inputs_of(processor)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 576
    assert model(**inputs).logits.isfinite().all()
    tokens, canvas = (
        CoordinateTable.from_layout(DynImgLayout.from_config(DynImgConfig(grid=GRID, fusion=fusion)))
        for fusion in ("tokens", "canvas")
    )
    assert torch.equal(tokens.share, canvas.share)
    assert torch.equal(tokens.hw[108:], canvas.hw[108:])  # prompts
    key = torch.cartesian_prod(torch.arange(9.0), torch.arange(12.0))  # rows in whole cells: 27 / 9 = 3
    torch.testing.assert_close(tokens.hw[:108, 0], key[:, 0])
    torch.testing.assert_close(tokens.hw, canvas.hw, atol=0.2, rtol=0)  # 20 key rows do not divide by 9


@torch.no_grad()
def test_cache_padding_and_copies_change_nothing():
    model, processor = joined("siglip")
    texts, videos = ["What?", "What moves in this video and where?"], [noise_video(0), noise_video(1)]
    batch = processor(text=texts, videos=videos, padding=True, return_tensors="pt")
    settings = {"max_new_tokens": 4, "do_sample": False}
    answers = model.generate(**batch, **settings)
    assert torch.equal(answers, model.generate(**batch, **settings, use_cache=False))
    copy, single = deepcopy(model), processor(text=texts[1], videos=videos[1], return_tensors="pt")
    model.model.prompt_slots.slot_embedding.zero_()
    torch.testing.assert_close(copy(**single).logits[0, -1], copy(**batch).logits[1, -1], atol=5e-4, rtol=0)


@every_kind
@torch.no_grad()
def test_remove_restores_the_model_bit_for_bit(kind):
    model, base, patch = plain(kind)
    keys, image = list(model.state_dict()), None if kind == "timm" else ordinary_image(base)
    before = None if image is None else model(**image).logits  # also lets transformers put its own hooks on
    state = fingerprint(model)
    config = DynImgConfig(fusion="tokens", num_images=1)
    apply_dynimg(model, config, patch=patch)
    assert set(model.state_dict()) > set(keys)
    model(**inputs_of(DynImgProcessor(base, config, patch=patch)))
    if image is not None:  # an ordinary picture goes the model's own way
        assert torch.equal(model(**image).logits, before)
    remove_dynimg(model)
    assert list(model.state_dict()) == keys
    assert fingerprint(model) == state
    if image is not None:
        assert torch.equal(model(**image).logits, before)


def test_describe_tells_fusion_attention_and_how_far_the_slots_moved():
    model, _ = joined("siglip")
    assert "2 x (1 key + 4 prompts), fusion tokens, attention joint, slots 10.7" in str(describe_dynimg(model))
    assert describe_dynimg(model).slot_norm == pytest.approx(128**0.5, rel=0.2)
    assert "slots" not in str(describe_dynimg(apply_dynimg(fresh("llava")[0])))


def test_precomposed_pictures_equal_the_video_and_other_fusions_are_refused():
    model, processor = joined("siglip")
    dynimgs = compose(noise_video(), processor.config)
    assert {dynimg.image.size for dynimg in dynimgs} == {(108, 136)}
    from_video = inputs_of(processor)["pixel_values"]
    for images in (dynimgs, [dynimg.image for dynimg in dynimgs]):
        given = processor(text="What moves?", images=images, return_tensors="pt")["pixel_values"]
        assert torch.equal(given, from_video)
    assert from_video.shape == (1, 2, 3, 138, 110)
    assert torch.equal(from_video[..., 107, :], from_video[..., 109, :])  # edges are copied between key and prompts
    canvas = DynImgProcessor(processor.base, DynImgConfig(num_images=2))
    with pytest.raises(ValueError, match=r"136 x 108 pixels.*fusion='canvas' takes 1 of 108 x 108"):
        canvas(text="What moves?", images=dynimgs)
    with pytest.raises(ValueError, match=r"of 110 x 110, but a DynImg with fusion='tokens' has 1 of 138 x 110"):
        model(**inputs_of(canvas))


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("qwen2_5_vl", "class Qwen2_5_VisionTransformerPretrainedModel"),
        ("gemma3", "32 x 32 patches are merged to 16 x 16"),
        pytest.param("perception_lm", "timm's Eva", marks=no_timm),
    ],
)
def test_other_towers_are_refused_with_what_is_allowed_and_nothing_is_left_behind(family, reason):
    model, _ = fresh(family)
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ValueError, match=f"{reason}.*Allowed: SigLIP and CLIP.*timm's VisionTransformer.*'canvas'"):
        apply_dynimg(model, DynImgConfig(fusion="tokens"))
    assert [name for name, _ in model.named_modules()] == names
    apply_dynimg(model, DynImgConfig())


def test_an_offloaded_tower_is_refused():
    model, processor = joined("siglip")
    cpu_offload(model.model.vision_tower, execution_device="cpu")
    with pytest.raises(ValueError, match="are offloaded; name a device for the tower"):
        model(**inputs_of(processor))


def test_a_patch_that_names_no_tower_is_told_how():
    patch = Patch(model_type="llava", vision_tower="eyes")
    with pytest.raises(ValueError, match=r"found no 'eyes' in LlavaModel.*Patch\(vision_tower="):
        apply_dynimg(fresh("llava")[0], DynImgConfig(fusion="tokens"), patch=patch)


# -- adapters and checkpoints --------------------------------------------------------------------------------------


def test_an_adapter_brings_its_slots_and_one_without_them_is_refused(tmp_path):
    base = write_tiny("llava_onevision", tmp_path / "base")
    config = DynImgConfig(fusion="tokens", num_images=1)
    model, processor = load(base, config=config)
    with pytest.raises(ValueError, match=r"slot embedding of fusion='tokens' is frozen.*'slots'"):
        check_slots(get_peft_model(deepcopy(model), lora_config(2, 4)))
    trained = get_peft_model(model, lora_config(2, 4, parts=("theta", "slots"))).eval()
    check_slots(trained)
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            assert "vision_tower" not in name
            parameter.data += 0.1
    trained.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    inputs = inputs_of(processor)
    again, its_processor = load(base, tmp_path / "adapter")
    assert its_processor.config == processor.config
    assert describe_dynimg(again).slot_norm == pytest.approx(0.1 * 128**0.5)
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, trained(**inputs).logits)
    with pytest.raises(ValueError, match="holds no slot_embedding"):
        check_ours("adapter", ["x.theta_t"], processor.config)
    whole = trained.merge_and_unload()
    whole.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "whole")[0](**inputs).logits, whole(**inputs).logits)
    assert not hasattr(remove_dynimg(whole).model, "prompt_slots")


def test_training_and_evaluation_take_it_by_one_option(tmp_path):
    base = speaking_base("llava", tmp_path / "base")
    options = {"fusion": "tokens", "max_steps": 2, "activation_checkpointing": True, "learning_rate": 1e-3}
    result = quick(base, tmp_path / "adapter", data="motion_qa_mc:4", **options)
    norms = [entry["slot_embedding"] for entry in result.history if "loss" in entry]
    assert 0.5 < norms[-1] / (1e-3 * 128**0.5) < 1.01  # one step of Adam at the run's rate, not at theta's
    assert "| trained | LoRA r 8, projector, theta, slots |" in (result.output / "README.md").read_text("utf-8")
    served = LlavaDynImg(str(base), adapter=str(result.output), device="cpu", fusion="tokens", max_new_tokens=2)
    assert describe_dynimg(served.model).slot_norm == pytest.approx(norms[-1], abs=1e-4)
    scores = evaluate_model(served.model, served.processor, "motion_qa_mc", limit=1)
    assert "motion_qa_mc/accuracy" in scores


def test_a_plan_counts_slots_and_what_the_tower_keeps_for_them():
    needed = {"base": "b", "output": "o", "data": "motion_qa", "preset": "lora_default"}
    config = fresh("llava")[0].config
    tokens, canvas = (
        plan(read_config({**needed, "fusion": fusion}), model_config=config) for fusion in ("tokens", "canvas")
    )
    assert (tokens.trained["slots"], canvas.trained["slots"]) == (4 * 32, 0)
    patches = 8 * 4 * (24 + 6) * 24
    assert tokens.activations - canvas.activations == patches * 32 * (2 * 2 + 34)
