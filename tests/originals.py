"""Tiny checkpoints in the llava package's own format, written by naming a model's weights as the package does."""

from __future__ import annotations

import json
import re

from modelling import fresh
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, SiglipVisionConfig

from dynimg_plugin.compat import rope_parameters

ORIGINAL_NAMES = {
    r"^model\.vision_tower\.(vision_model\.)?": "model.vision_tower.vision_tower.vision_model.",
    r"^model\.multi_modal_projector\.linear_1\.": "model.mm_projector.0.",
    r"^model\.multi_modal_projector\.linear_2\.": "model.mm_projector.2.",
    r"^model\.language_model\.": "model.",
}
# kind: (family of transformers, what config.json says beside the decoder)
KINDS = {
    "LLaVA-1.5": ("llava", {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama"}),
    "LLaVA-NeXT-Video": (
        "llava_next_video",
        {
            "architectures": ["LlavaLlamaForCausalLM"],
            "mm_spatial_pool_mode": "average",
            "mm_spatial_pool_stride": 2,
            "mm_resampler_type": "spatial_pool",
            "mm_patch_merge_type": "spatial_unpad",
            "image_grid_pinpoints": "[(96, 192), (192, 96)]",
        },
    ),
    "llava-onevision-qwen2": (
        "llava_onevision",
        {
            "architectures": ["LlavaQwenForCausalLM"],
            "model_type": "llava_qwen",
            "mm_patch_merge_type": "spatial_unpad",
            "image_aspect_ratio": "anyres_max_9",
            "image_grid_pinpoints": [[110, 220], [220, 110]],
        },
    ),
    "LLaVA-Video-Qwen2": (
        "llava_onevision",
        {
            "architectures": ["LlavaQwenForCausalLM"],
            "model_type": "llava_qwen",
            "mm_patch_merge_type": "spatial_unpad",
            "mm_newline_position": "grid",
            "mm_spatial_pool_mode": "bilinear",
            "mm_spatial_pool_stride": 2,
            "image_aspect_ratio": "anyres_max_9",
            "image_grid_pinpoints": "(1x1),...,(6x6)",
        },
    ),
}
DECODER = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
DECODER += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")


def write_original(folder, kind, **changes):
    """A tiny checkpoint of the kind with random weights; returns transformers' model of them."""
    family, values = KINDS[kind]
    model, processor = fresh(family)
    tower = folder / "tower"
    kept = model.config.vision_config.to_dict()
    if family == "llava_onevision":
        kept["num_hidden_layers"] += 1  # the package deletes the last
        SiglipVisionConfig(**kept).save_pretrained(tower)
    else:
        CLIPVisionConfig(**kept).save_pretrained(tower)
    text = model.config.text_config
    config = {name: getattr(text, name) for name in DECODER} | {"rope_theta": rope_parameters(text)["rope_theta"]}
    config |= {"mm_vision_tower": str(tower), "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    (folder / "config.json").write_text(json.dumps(config | values | changes), "utf-8")
    save_file({original_name(name): value for name, value in model.state_dict().items()}, folder / "model.safetensors")
    processor.tokenizer.save_pretrained(folder)
    return model


def original_name(name):
    for pattern, replacement in ORIGINAL_NAMES.items():
        name = re.sub(pattern, replacement, name)
    return name
