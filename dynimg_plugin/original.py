"""Checkpoints in the `llava` package's own format, read into transformers' classes; the package is not needed.

LLaVA-1.5 and LLaVA-NeXT (Vicuna, Mistral), LLaVA-NeXT-Video, llava-onevision-qwen2 and LLaVA-Video-Qwen2 name their
weights alike, so one table of names serves all.
"""

from __future__ import annotations

import re
from ast import literal_eval
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, PretrainedConfig

from dynimg_plugin.compat import rope_fields, tower_prefix
from dynimg_plugin.original_processor import build_processor

NAMES = {
    r"^model\.vision_tower\.vision_tower\.(vision_model\.)?": "model.vision_tower.{tower}",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"^model\.(embed_tokens|layers|norm)\b": r"model.language_model.\1",
}
BUFFERS = re.compile(r"(position_ids|rotary_emb\.inv_freq)$")  # older releases saved them; they are computed
DECODERS = {"LlavaLlamaForCausalLM": "llama", "LlavaMistralForCausalLM": "mistral", "LlavaQwenForCausalLM": "qwen2"}
TEXT = """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    rms_norm_eps max_position_embeddings tie_word_embeddings bos_token_id eos_token_id pad_token_id sliding_window
    use_sliding_window max_window_layers"""
TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "google/siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
}


def read_original(base: str | Path) -> dict[str, Any] | None:
    """The config.json of a checkpoint in the `llava` package's format; None for any other."""
    values, _ = PretrainedConfig.get_config_dict(base)
    return values if "mm_vision_tower" in values else None


def load_original(base: str | Path, **options: Any) -> tuple[Any, Any]:
    """(model, processor) of transformers from a checkpoint in the `llava` package's format.

    Where the vocabulary has no room for the image token, it grows by rows of zeros to a multiple of 64.

    Args:
        options: for from_pretrained(), e.g. dtype, device_map.

    Raises:
        ValueError: a part that transformers' classes do not have, or weights that are missing or left over.
    """
    original = read_original(base)
    if original is None:
        raise ValueError(f"{base} is no checkpoint of the llava package: its config.json names no mm_vision_tower")
    config = convert_config(original)
    tokenizer = AutoTokenizer.from_pretrained(base, config=config, padding_side="left")
    tokenizer.add_tokens([token for token in ("<image>", "<video>") if token not in tokenizer.get_vocab()], True)
    vocabulary = tokenizer.get_vocab()
    config.image_token_id, config.video_token_id = vocabulary["<image>"], vocabulary["<video>"]
    tower = tower_prefix(config.vision_config)
    names = {pattern: name.replace("{tower}", tower) for pattern, name in NAMES.items()}
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        base, config=config, key_mapping=names, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    model, info = loaded
    model._weight_conversions = None  # or save_pretrained() would try to write the package's names again
    _check(base, original, info)
    make_room(model, len(tokenizer))
    return model, build_processor(original, config, tokenizer)


def convert_config(original: dict[str, Any]) -> Any:
    """transformers' config for the `llava` package's; its image and video ids are set with the tokenizer's."""
    _refuse_unknown_parts(original)
    vision = _vision(original["mm_vision_tower"])
    siglip = vision["model_type"].startswith("siglip")
    text = {name: original[name] for name in TEXT.split() if name in original}
    text |= {"model_type": DECODERS[original["architectures"][0]], **rope_fields(**_rope(original))}
    values: dict[str, Any] = {"text_config": text, "vision_config": vision, "image_token_id": 0}
    values["tie_word_embeddings"] = original.get("tie_word_embeddings", False)
    if siglip:  # the package deletes the tower's last layer and head and takes what comes before
        vision |= {"num_hidden_layers": vision["num_hidden_layers"] - 1, "vision_use_head": False}
        values |= {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
    else:
        whole = original.get("mm_vision_select_feature") == "cls_patch"
        values["vision_feature_layer"] = original.get("mm_vision_select_layer", -2)
        values["vision_feature_select_strategy"] = "full" if whole else "default"
    if "unpad" not in original.get("mm_patch_merge_type", ""):
        return AutoConfig.for_model("llava", **values)
    if newline := newline_as_trained(original):
        values["mm_newline_position"] = newline
    values["image_grid_pinpoints"] = _pinpoints(original, vision["image_size"])
    if siglip:
        values["vision_aspect_ratio"] = original.get("image_aspect_ratio", "anyres_max_9")
        return AutoConfig.for_model("llava_onevision", video_token_id=0, **values)
    if not any(name.startswith("mm_spatial_pool") for name in original):
        return AutoConfig.for_model("llava_next", **values)
    mode, stride = original.get("mm_spatial_pool_mode", "average"), original.get("mm_spatial_pool_stride", 2)
    return AutoConfig.for_model(
        "llava_next_video", video_token_id=0, spatial_pool_mode=mode, spatial_pool_stride=stride, **values
    )


def newline_as_trained(original: dict[str, Any]) -> Any:
    """Where a video's newline tokens stand, in the words of DynImgConfig.newline; None where nothing is said.

    The package reads `mm_newline_position` only where the patches of pictures are merged with a newline.
    """
    return original.get("mm_newline_position") if "unpad" in original.get("mm_patch_merge_type", "") else None


def _refuse_unknown_parts(original: dict[str, Any]) -> None:
    wanted: dict[str, list[Any]] = {
        "architectures": [[name] for name in DECODERS],
        "mm_projector_type": ["mlp2x_gelu"],
        "mm_resampler_type": [None, "spatial_pool"],
        "mm_spatial_pool_mode": [None, "average", "max", "bilinear"],
        "mm_newline_position": [None, "grid", "frame", "one_token", "no_token"],
        "add_faster_video": [None, False],
        "s2": [None, False],
    }
    for name, allowed in wanted.items():
        if original.get(name) not in allowed:
            raise ValueError(
                f"{name}={original.get(name)!r} of this llava checkpoint has no counterpart in transformers; "
                f"supported: {', '.join(map(str, allowed))}"
            )


def _vision(name: str) -> dict[str, Any]:
    """The vision tower's config: of a known tower, or read from its folder or hub id."""
    if name in TOWERS:
        return dict(TOWERS[name])
    config = AutoConfig.from_pretrained(name)
    return getattr(config, "vision_config", config).to_dict()


def _rope(original: dict[str, Any]) -> dict[str, Any]:
    scaling = dict(original.get("rope_parameters") or original.get("rope_scaling") or {})
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    return {"rope_theta": original.get("rope_theta", 1e4), **scaling, "rope_type": kind}


def _pinpoints(original: dict[str, Any], side: int) -> list[list[int]]:
    """As a list: the package also writes one as text, or a range of tiles, "(1x1),...,(6x6)"."""
    given = original.get("image_grid_pinpoints") or [[side, side]]
    if not isinstance(given, str):
        return [list(pair) for pair in given]
    if "x" not in given:
        return [list(pair) for pair in literal_eval(given)]
    numbers = [int(number) for number in re.findall(r"\d+", given)]
    steps = range(min(numbers), max(numbers) + 1)
    return [[side * rows, side * columns] for rows, columns in product(steps, steps)]


def _check(base: str | Path, original: dict[str, Any], info: dict[str, Any]) -> None:
    missing = sorted(info["missing_keys"])
    if missing and all("vision_tower" in name for name in missing):
        raise ValueError(
            f"{base} holds no vision tower: it was trained with {original['mm_vision_tower']} frozen and apart; save "
            "the tower's weights into the checkpoint as model.vision_tower.vision_tower.*"
        )
    left = sorted(name for name in info["unexpected_keys"] if not BUFFERS.search(name))
    if missing or left or info["mismatched_keys"]:
        raise ValueError(
            f"{base} does not fit transformers' counterpart of {original['architectures'][0]}: missing {missing[:5]}, "
            f"left over {left[:5]}, of another shape {sorted(map(str, info['mismatched_keys']))[:5]}"
        )


@torch.no_grad()
def make_room(model: Any, tokens: int) -> None:
    """Where a model's vocabulary has too few rows, add rows of zeros up to a multiple of 64.

    The new tokens' logit is 0, and all others stay as they are.
    """
    old = model.config.text_config.vocab_size
    if tokens <= old:
        return
    model.resize_token_embeddings(-(-tokens // 64) * 64, mean_resizing=False)
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        embedding.weight[old:] = 0
