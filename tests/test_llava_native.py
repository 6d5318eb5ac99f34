"""The llava package's own model with DynImgs: llava-torch from the registry, a tiny LLaVA-1.5 of its classes."""

from __future__ import annotations

import sys
from copy import deepcopy
from importlib import import_module

import pytest
import torch
from modelling import AXES, fingerprint, noise_video, randomise_theta, rotary, sharpen
from transformers import CLIPVisionConfig, CLIPVisionModel, modeling_utils

import dynimg_plugin
from dynimg_plugin import DynImgConfig, describe_dynimg, remove_dynimg
from dynimg_plugin.coordinates import CoordinateTable
from dynimg_plugin.layout import DynImgLayout
from dynimg_plugin.patches.llava_native import apply_dynimg, dynimg_pixels, llava_shims
from dynimg_plugin.patches.llava_native import compat as native_compat
from dynimg_plugin.patches.llava_native.compat import MOVED
from dynimg_plugin.pooling import pool_tokens
from dynimg_plugin.session import encode_dynimgs
from dynimg_plugin.tiny import Kit

V = -200  # the package's image token
PROMPT = torch.tensor([[10, 20, 30, V, 40, 50, 60]])
SIX = {"max_new_tokens": 6, "output_logits": True, "return_dict_in_generate": True, "do_sample": False}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A tiny LlavaLlamaForCausalLM with random weights. Until here nothing of transformers was changed."""
    assert not any(hasattr(modeling_utils, name) for name in MOVED)
    folder, kit = str(tmp_path_factory.mktemp("tower")), Kit()
    torch.manual_seed(0)
    tower = {name: value for name, value in kit.clip_tower().items() if name != "model_type"}
    CLIPVisionModel(CLIPVisionConfig(**tower)).save_pretrained(folder)
    kit.clip_images().save_pretrained(folder)
    text = {name: value for name, value in kit.text("llama").items() if name != "model_type"}
    multimodal = {"mm_vision_tower": folder, "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 32}
    multimodal |= {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "unfreeze_mm_vision_tower": True}
    with llava_shims() as shims:
        assert all(name in str(shims) for name in (*MOVED, "LlavaConfig.__setattr__"))
        from llava.model import LlavaConfig, LlavaLlamaForCausalLM

        return LlavaLlamaForCausalLM(LlavaConfig(**text, **multimodal)).eval()


@pytest.fixture
def plain(built):
    return deepcopy(built)


@pytest.fixture
def model(built):
    """Patched, with theta and attention such that positions matter."""
    model = apply_dynimg(deepcopy(built))
    sharpen(model)
    randomise_theta(model)
    return model


@pytest.fixture(scope="module")
def pixels(built):
    """Two videos: (2, 4, 3, 96, 96)."""
    return dynimg_pixels(apply_dynimg(deepcopy(built)), [noise_video(0), noise_video(1)])


def coordinates_of(model, **inputs):
    """What the rotary wrapper is given in a forward."""
    seen = []
    handle = rotary(model).register_forward_pre_hook(lambda module, _: seen.append(module.coordinates))
    model(**inputs)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_theta_zero_gives_the_unpatched_models_bits(plain, pixels, dtype):
    model = dynimg_plugin.apply_dynimg(deepcopy(plain)).to(dtype)  # the one door for all models
    plain.to(dtype)
    layout = DynImgLayout.from_config(model.model.dynimg.config)
    patches = plain.encode_images(pixels[0].to(dtype))
    features = pool_tokens(patches[:, None], layout).flatten(0, 1)
    before, after = (plain.model.embed_tokens(ids) for ids in (PROMPT[0, :3], PROMPT[0, 4:]))
    expected = plain(inputs_embeds=torch.cat((before, features, after))[None]).logits
    logits = model(input_ids=PROMPT, images=pixels[:1].to(dtype)).logits  # with gradients: the wrapper's own path
    assert logits.shape[1] == 6 + 576
    assert torch.equal(logits, expected)
    assert describe_dynimg(model).family == "llava_llama"


def test_theta_learns_and_labels_stand_on_text_alone(model, plain, pixels):
    labels = torch.tensor([[-100, -100, 30, -100, -100, 50, 60]])
    out = model(input_ids=PROMPT, images=pixels[:1], labels=labels)
    out.loss.backward()
    for name in AXES:
        assert getattr(rotary(model), name).grad.norm() > 0, name
    shifted = out.logits[0, :-1].log_softmax(-1)
    picked = [shifted[at, token] for at, token in ((1, 30), (579, 50), (580, 60))]
    torch.testing.assert_close(out.loss, -sum(picked) / 3)


@torch.no_grad()
def test_generate_with_cache_equals_without_and_position_matters(model, pixels):
    cached = model.generate(PROMPT, images=pixels[:1], **SIX)
    full = model.generate(PROMPT, images=pixels[:1], **SIX, use_cache=False)
    for theta in rotary(model).thetas:
        theta.zero_()
    control = model.generate(PROMPT, images=pixels[:1], **SIX)
    assert torch.equal(cached.sequences, full.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(full.logits), atol=1e-4, rtol=0)
    assert (cached.logits[0] - control.logits[0]).abs().max() > 0.03


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("images_of", ["rows that hold one", "all rows"])
def test_a_padded_batch_equals_its_rows(model, pixels, side, images_of):
    model.config.tokenizer_padding_side = side
    rows = [[10, V, 40], [10, 20, 30, 40, 50, 60, 70], [10, 20, 30, V, 40, 50]]
    ids = torch.zeros(3, 7, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        kept = slice(7 - len(row), None) if side == "left" else slice(len(row))
        ids[i, kept], mask[i, kept] = torch.tensor(row), 1
    images = pixels if images_of == "rows that hold one" else torch.stack((pixels[0], pixels[0], pixels[1]))
    _, positions, attention, _, embeds, _ = model.prepare_inputs_labels_for_multimodal(
        ids, None, mask, None, None, images
    )
    logits = model(inputs_embeds=embeds, attention_mask=attention, position_ids=positions).logits
    for i, (row, shown) in enumerate(zip(rows, (pixels[:1], None, pixels[1:]), strict=True)):
        single = model(input_ids=torch.tensor([row]), images=shown).logits[0]
        torch.testing.assert_close(logits[i][attention[i].bool()], single, atol=5e-4, rtol=0)


@torch.no_grad()
def test_beams_and_a_batch_generate_what_single_prompts_do(model, pixels):
    model.config.tokenizer_padding_side = "left"
    batch = torch.cat((PROMPT, PROMPT))
    settings = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(batch), "num_beams": 2}
    both = model.generate(batch, images=pixels, **settings)
    settings["attention_mask"] = torch.ones_like(PROMPT)
    for row, shown in zip(both, pixels, strict=True):
        alone = model.generate(PROMPT, images=shown[None], **settings)[0]
        assert torch.equal(row[: len(alone)], alone)


@torch.no_grad()
def test_four_image_tokens_take_one_dynimg_each(model, pixels):
    apart = torch.tensor([[10, V, 20, V, V, 30, V]])
    found = coordinates_of(model, input_ids=apart, images=pixels[:1])[0]
    cells = coordinates_of(model, input_ids=PROMPT, images=pixels[:1])[0, 3:-3].view(4, 144, 3)
    text = torch.zeros(1, 3)
    expected = torch.cat((text, cells[0], text, cells[1], cells[2], text, cells[3]))
    assert torch.equal(found, expected)
    table = CoordinateTable.from_layout(DynImgLayout.from_config(model.model.dynimg.config))
    assert torch.equal(cells[2, :, 1:], table.hw)
    side_by_side = torch.tensor([[10, 20, 30, V, V, V, V, 40, 50, 60]])
    one, four = (model(input_ids=ids, images=pixels[:1]).logits for ids in (PROMPT, side_by_side))
    assert torch.equal(one, four)


@torch.no_grad()
def test_other_images_and_text_go_the_packages_own_way(model, plain, pixels):
    sharpen(plain)
    model(input_ids=PROMPT, images=pixels[:1])
    for images in (pixels[0, :1], [pixels[0, 0]], None):
        ids = PROMPT if images is not None else torch.tensor([[10, 20, 30]])
        assert torch.equal(model(input_ids=ids, images=images).logits, plain(input_ids=ids, images=images).logits)
    model.generate(PROMPT, images=pixels[:1], max_new_tokens=2)
    assert coordinates_of(model, input_ids=torch.tensor([[10, 20, 30]])) is None


@torch.no_grad()
def test_the_packages_limit_cuts_coordinates_too(model, pixels):
    whole = coordinates_of(model, input_ids=PROMPT, images=pixels[:1])
    model.config.tokenizer_model_max_length = 100
    assert torch.equal(coordinates_of(model, input_ids=PROMPT, images=pixels[:1]), whole[:, :100])


@torch.no_grad()
def test_remove_restores_the_model_bit_for_bit(plain, pixels):
    before, keys, state = (
        plain(input_ids=PROMPT, images=pixels[0, :1]).logits,
        list(plain.state_dict()),
        fingerprint(plain),
    )
    apply_dynimg(plain, DynImgConfig(theta_scope="per_layer"))
    randomise_theta(plain)
    assert fingerprint(plain) != state
    assert plain(input_ids=PROMPT, images=pixels[:1]).logits.shape[1] == 582
    remove_dynimg(plain)
    assert torch.equal(plain(input_ids=PROMPT, images=pixels[0, :1]).logits, before)
    assert list(plain.state_dict()) == keys
    assert fingerprint(plain) == state


@torch.no_grad()
def test_a_copy_is_a_model_of_its_own_and_twice_is_once(model, pixels):
    copied, state = deepcopy(model), fingerprint(model)
    assert fingerprint(apply_dynimg(model)) == state
    for theta in rotary(copied).thetas:
        theta.zero_()
    logits = [each(input_ids=PROMPT, images=pixels[:1]).logits for each in (model, copied, model)]
    assert torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], logits[1])
    with pytest.raises(ValueError, match=r"patched already with .*remove_dynimg"):
        apply_dynimg(model, DynImgConfig(num_images=2))


def test_what_cannot_be_is_refused(model, plain, pixels):
    cases = (
        ([[10, V, V, V]], pixels[:1], "holds 3 image tokens for 4 DynImgs; give 1, or one for each"),
        ([[10, V], [10, 20]], pixels[:1].repeat(3, 1, 1, 1, 1), "3 rows came with 2 prompts, of which 1 hold"),
        ([[10, 20]], pixels[:1], "1 prompts, of which 0 hold an image token"),
    )
    for ids, images, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            model(input_ids=torch.tensor(ids), images=images)
    model.prepare_inputs_labels_for_multimodal(PROMPT, None, None, None, None, pixels[:1])
    with pytest.raises(ValueError, match=r"1 rows of 3 tokens, but 1 of 582 were prepared"):
        model(inputs_embeds=torch.zeros(1, 3, 64))
    assert model(inputs_embeds=torch.zeros(1, 3, 64)).logits.shape[1] == 3  # and forgotten
    with pytest.raises(ValueError, match="take t_mode='slot'"):
        apply_dynimg(plain, DynImgConfig(t_mode="time"))
    with pytest.raises(ValueError, match="has no newline token"):
        apply_dynimg(plain, DynImgConfig(newline="grid"))
    plain.get_vision_tower().is_loaded = False
    with pytest.raises(ValueError, match=r"not loaded; call model.get_vision_tower\(\).load_model"):
        apply_dynimg(plain)


@torch.no_grad()
def test_newline_tokens_as_the_config_says(plain, pixels):
    """LLaVA-NeXT's words; this package knows them not, but its models may hold a newline token."""
    plain.config.mm_patch_merge_type, plain.config.mm_newline_position = "spatial_unpad", "grid"
    plain.model.image_newline = torch.nn.Parameter(torch.full((64,), 0.5))
    apply_dynimg(plain)
    embeds = plain.prepare_inputs_labels_for_multimodal(PROMPT, None, None, None, None, pixels[:1])[4][0, 3:-3]
    rows = embeds.view(48, 13, 64)
    assert (rows[:, 12] == 0.5).all()
    expected = encode_dynimgs(plain.model, pixels[:1]).pooler_output[0].view(48, 13, 64)
    assert torch.equal(rows, expected)
    assert not plain.model.dynimg.plan[0, 3:-3].view(48, 13, 3)[:, 12].any()


def test_shims_say_what_they_do_and_take_it_back(built):
    config_class = type(built.config)
    assert "__setattr__" not in vars(config_class)
    assert not any(hasattr(modeling_utils, name) for name in MOVED)
    shims = llava_shims()
    assert shims.package is import_module("llava")
    config = deepcopy(built.config)
    theta = config.rope_parameters["rope_theta"]
    config.rope_scaling = None  # as LLaVA-NeXT's constructors do
    assert config.rope_parameters["rope_theta"] == theta
    with pytest.raises(RuntimeError, match=r"find_pruneable_heads_and_indices\(\) any more"):
        modeling_utils.find_pruneable_heads_and_indices()
    again = llava_shims()
    assert str(again).endswith("none")  # nothing left to do, so nothing to take back
    again.undo()
    shims.undo()
    assert "__setattr__" not in vars(config_class)
    assert not any(hasattr(modeling_utils, name) for name in MOVED)
    with pytest.warns(FutureWarning, match="rope_scaling"):
        config.rope_scaling = None
    assert not config.rope_parameters


@torch.no_grad()
def test_positions_that_loading_left_as_garbage_are_counted_anew(plain, pixels):
    before = plain.encode_images(pixels[0])
    embeddings = plain.get_vision_tower().vision_tower.embeddings
    embeddings.position_ids = embeddings.position_ids.flip(-1).clone()
    assert not torch.equal(plain.encode_images(pixels[0]), before)
    with llava_shims() as shims:
        mended = shims.mend_positions(plain)
        assert [name.rpartition(".")[2] for name in mended] == ["embeddings"]
        assert shims.mend_positions(plain) == []
    assert torch.equal(plain.encode_images(pixels[0]), before)


def test_an_import_that_fails_in_its_own_way_takes_everything_back(monkeypatch):
    def broken(name):
        raise AttributeError(f"{name} wants what is gone")

    monkeypatch.setattr(native_compat, "import_module", broken)
    with pytest.raises(AttributeError, match="wants what is gone"):
        llava_shims()
    assert not any(hasattr(modeling_utils, name) for name in MOVED)


def test_without_the_package_the_way_to_get_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llava", None)
    with pytest.raises(ImportError, match="pip install --no-deps llava-torch"):
        llava_shims()
    assert not any(hasattr(modeling_utils, name) for name in MOVED)
