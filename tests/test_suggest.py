"""suggest_patch(): a family whose file is taken away is found again; what cannot be patched is refused and told why."""

from __future__ import annotations

import pytest
import torch
from modelling import fresh, noise_video, patched
from transformers import (
    AyaVisionConfig,
    AyaVisionProcessor,
    GotOcr2ImageProcessor,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from typer.testing import CliRunner

from dynimg_plugin import DynImgProcessor, apply_dynimg, cli, suggest_patch
from dynimg_plugin.families import built_in_families
from dynimg_plugin.tiny import Kit, build_from, write_tiny


def without(family):
    return [name for name in built_in_families() if name != family]


def run(source: str):
    names: dict = {}
    exec(compile(source, "suggested.py", "exec"), names)  # the file that a user would save
    return names["PATCH"]


@pytest.mark.parametrize(
    ("family", "alike"),
    [
        ("llava", "llava_next"),
        ("llava_onevision", "llava"),
        ("qwen2_5_vl", "qwen2_vl"),
        ("vipllava", "video_llava"),
        ("internvl", "its own get_image_features()"),
        ("gemma3", "its own get_image_features()"),
    ],
)
def test_a_family_without_its_file_is_found_again(family, alike):
    """The suggested file, run, gives the same inputs and the same logits as the family's own."""
    model, base = fresh(family)
    state = [(name, type(module)) for name, module in model.named_modules()]
    suggestion = suggest_patch(model, base, without(family))
    assert suggestion.alike == alike
    assert [(name, type(module)) for name, module in model.named_modules()] == state
    patch = run(str(suggestion))
    known, known_processor = patched(family)
    processor = DynImgProcessor(base, patch=patch)
    texts, videos = ["What?", "What moves in here?"], [noise_video(0), noise_video(1)]
    ours, theirs = (
        p(text=texts, videos=videos, padding=True, return_tensors="pt") for p in (processor, known_processor)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with torch.no_grad():
        assert torch.equal(apply_dynimg(model, patch=patch)(**ours).logits, known(**theirs).logits)


@pytest.mark.oldest
def test_a_family_that_nobody_wrote_a_file_for_is_found():
    """Aya Vision: SigLIP with pixel shuffle to 14 x 14, Cohere 2 with interleaved angles, tokens of its own."""
    kit = Kit()
    kit.name_tokens("<|IMG_PATCH|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE", "TILE_GLOBAL", image_token="<image>")
    side = 28 * kit.PATCH_SIZE
    images = GotOcr2ImageProcessor(size=kit.square(side), crop_to_patches=False)
    sizes = {"patch_size": 2 * kit.PATCH_SIZE, "img_size": side, "downsample_factor": 1}
    processor = AyaVisionProcessor(images, kit.tokenizer, **sizes, chat_template=kit.CHAT_TEMPLATE)
    text = kit.text("cohere2", layer_types=["sliding_attention", "full_attention"])
    placeholder = kit.tokenizer.get_vocab()["<|IMG_PATCH|>"]
    config = AyaVisionConfig(
        vision_config=kit.siglip_tower(side), text_config=text, downsample_factor=2, image_token_id=placeholder
    )
    model, base = build_from(kit, config, processor)
    patch = run(str(suggest_patch(model, base)))
    assert (patch.rope, patch.tower(config)) == ("interleaved", (14, 8))
    inputs = DynImgProcessor(base, patch=patch)(text="What?", videos=noise_video(), return_tensors="pt")
    text = base.tokenizer.decode(inputs["input_ids"][0])
    assert text.count("<|START_OF_IMG|>TILE_GLOBAL" + "<|IMG_PATCH|>" * 144 + "<|END_OF_IMG|>") == 4
    assert apply_dynimg(model, patch=patch)(**inputs).logits.isfinite().all()


def test_a_way_that_drops_deeper_features_or_writes_foreign_separators_is_not_taken():
    with pytest.raises(ValueError, match=r"(?s)model\.language_model with a half, M-RoPE.*qwen2_vl: (Type|Value)Error"):
        suggest_patch(*fresh("qwen3_vl"), without("qwen3_vl"))
    with pytest.raises(ValueError, match=r"qwen2_vl, qwen3_vl: it writes '<\|vision_end\|><\|vision_start\|>'"):
        suggest_patch(*fresh("glm4v"), without("glm4v"))


def test_a_complex_rotary_embedding_is_refused_with_the_reason():
    text = {"hidden_size": 32, "intermediate_size": 32, "intermediate_size_mlp": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "pad_token_id": 0}
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision |= {"image_size": 56, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    config = Llama4Config(text_config=text | {"num_local_experts": 2}, vision_config=vision, image_token_index=5)
    reason = r"Llama4TextRotaryEmbedding cannot be wrapped: it returned complex numbers.*rope_4d=False"
    with pytest.raises(ValueError, match=reason):
        suggest_patch(Llama4ForConditionalGeneration(config), None)


def test_a_text_only_model_is_refused_with_the_reason(tmp_path):
    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=64,
    )
    model = Qwen2ForCausalLM(config)
    with pytest.raises(ValueError, match="'qwen2' is a text-only model: its config has no vision_config"):
        suggest_patch(model, None)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'qwen2' is a text-only model"):
        CliRunner().invoke(cli.app, ["suggest", str(tmp_path)], catch_exceptions=False)


def test_the_command_writes_a_file(tmp_path):
    checkpoint = write_tiny("internvl", tmp_path / "tiny")
    result = CliRunner().invoke(cli.app, ["suggest", str(checkpoint)], catch_exceptions=False)
    assert run(result.stdout).model_type == "internvl"
    file = tmp_path / "mine.py"
    result = CliRunner().invoke(cli.app, ["suggest", str(checkpoint), "-o", str(file)], catch_exceptions=False)
    assert "InternVLForConditionalGeneration read as internvl" in result.stdout
    model, base = fresh("internvl")
    patch = run(file.read_text("utf-8"))
    inputs = DynImgProcessor(base, patch=patch)(text="What?", videos=noise_video(), return_tensors="pt")
    assert apply_dynimg(model, patch=patch)(**inputs).logits.isfinite().all()
