"""Checkpoints in the llava package's own format: every weight finds its place, and the answers stay the same.

Against the package's own code the loader is checked by benchmarks/original_llava.py.
"""

from __future__ import annotations

import json

import pytest
import torch
from modelling import fresh, noise_video
from originals import KINDS, write_original
from safetensors.torch import load_file, save_file

from dynimg_plugin import apply_dynimg, load
from dynimg_plugin.compat import rope_parameters
from dynimg_plugin.original import convert_config, load_original, read_original
from dynimg_plugin.patching import dynimg_config
from dynimg_plugin.tiny import Kit


@pytest.mark.oldest
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_weight_finds_its_place_and_the_logits_are_the_same(kind, tmp_path):
    expected = write_original(tmp_path, kind)
    assert any("vision_tower.vision_tower.vision_model." in name for name in load_file(tmp_path / "model.safetensors"))
    model, processor = load(tmp_path)
    assert type(model) is type(expected)
    assert processor.config.grid == (27 if "qwen" in kind.lower() else 24)
    inputs = processor(text="What moves?", videos=noise_video(), return_tensors="pt")
    assert torch.equal(model(**inputs).logits, apply_dynimg(expected, dynimg_config(model))(**inputs).logits)
    assert model.generate(**inputs, max_new_tokens=3).shape[1] <= inputs["input_ids"].shape[1] + 3


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_it_loads_is_saved_in_transformers_format(kind, tmp_path):
    write_original(tmp_path, kind)
    model, processor = load_original(tmp_path)
    model.save_pretrained(tmp_path / "new")
    processor.save_pretrained(tmp_path / "new")
    assert read_original(tmp_path / "new") is None
    saved, dynimgs = load(tmp_path / "new")
    inputs = dynimgs(text="What moves?", videos=noise_video(), return_tensors="pt")
    assert torch.equal(saved(**inputs).logits, apply_dynimg(model)(**inputs).logits)


@torch.no_grad()
def test_a_vocabulary_without_room_grows_by_zeros(tmp_path):
    """Vicuna's 32,000 tokens leave no row for <image>."""
    full = write_original(tmp_path, "LLaVA-1.5")
    kit = Kit()
    kit.name_tokens()
    rows = len(kit.tokenizer)
    kit.tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:rows].clone()
    save_file(weights, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text("utf-8")) | {"vocab_size": rows}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    model, processor = load(tmp_path)
    assert model.get_input_embeddings().weight.shape[0] % 64 == 0
    assert processor.image_token_id >= rows
    ids = torch.arange(5, 25)[None]
    logits = model(input_ids=ids).logits
    assert torch.equal(logits[..., :rows], full(input_ids=ids).logits[..., :rows])
    assert not logits[..., rows:].any()


def test_the_template_is_the_packages_conversation(tmp_path):
    write_original(tmp_path, "LLaVA-1.5")
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    answered = [*talk, {"role": "assistant", "content": "A ball."}, {"role": "user", "content": "Where?"}]
    text = load_original(tmp_path)[1].apply_chat_template(answered, add_generation_prompt=True)
    assert text.endswith("questions. USER: <image>\nWhat? ASSISTANT: A ball.</s>USER: Where? ASSISTANT:")
    qwen = tmp_path / "qwen"
    qwen.mkdir()
    write_original(qwen, "LLaVA-Video-Qwen2")
    text = load_original(qwen)[1].apply_chat_template(talk, add_generation_prompt=True)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert text == system + "<|im_start|>user\n<image>\nWhat?<|im_end|>\n<|im_start|>assistant\n"


def test_known_towers_need_no_folder_and_ranges_of_tiles_are_read():
    _, values = KINDS["LLaVA-Video-Qwen2"]
    siglip = {"mm_vision_tower": "google/siglip-so400m-patch14-384", "mm_projector_type": "mlp2x_gelu"}
    config = convert_config({**values, **siglip, "hidden_size": 64, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert config.vision_config.num_hidden_layers == 26
    assert len(config.image_grid_pinpoints) == 36
    assert config.image_grid_pinpoints[-1] == [2304, 2304]
    assert rope_parameters(config.text_config)["rope_type"] == "linear"
    _, values = KINDS["LLaVA-1.5"]
    clip = {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu"}
    assert convert_config({**values, **clip}).vision_config.num_hidden_layers == 24


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type='linear' of this llava checkpoint has no counterpart"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type='qformer'"),
        ({"architectures": ["LlavaMptForCausalLM"]}, "LlavaLlamaForCausalLM"),
        (
            {"mm_newline_position": "row"},
            "mm_newline_position='row' .*None, grid, frame, one_token, no_token",
        ),
        ({"add_faster_video": True}, "add_faster_video=True"),
        ({"num_hidden_layers": 3}, "missing .*layers.2"),
        ({"num_hidden_layers": 1}, "left over .*layers.1"),
        ({"intermediate_size": 80}, "of another shape"),
    ],
)
def test_what_does_not_fit_is_refused(changes, sentence, tmp_path):
    write_original(tmp_path, "LLaVA-1.5", **changes)
    with pytest.raises((ValueError, RuntimeError), match=sentence):
        load(tmp_path)


def test_a_checkpoint_without_its_tower_says_which_one_it_needs(tmp_path):
    write_original(tmp_path, "LLaVA-1.5")
    weights = load_file(tmp_path / "model.safetensors")
    save_file({n: v for n, v in weights.items() if "vision_tower" not in n}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds no vision tower: it was trained with .*tower frozen"):
        load(tmp_path)


def test_other_checkpoints_are_none_of_its_business(tmp_path):
    fresh("llava")[0].config.save_pretrained(tmp_path)
    assert read_original(tmp_path) is None
    with pytest.raises(ValueError, match="names no mm_vision_tower"):
        load_original(tmp_path)
