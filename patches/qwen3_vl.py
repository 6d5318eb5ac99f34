"""Qwen3-VL: as Qwen2-VL with patches of 16 px (384 px a DynImg); tower layers also feed layers of the decoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dynimg_plugin.families import Patch
from dynimg_plugin.patches import qwen2_vl
from dynimg_plugin.placeholders import Placeholders


def encode(core: Any, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
    """(m, 3, H, W) -> (m, 144, c) and for every deepstack layer (m, 144, c)."""
    features, deeper = qwen2_vl.run_tower(core, pixels)
    per_image = (len(pixels), -1)
    return features.unflatten(0, per_image), [layer.unflatten(0, per_image) for layer in deeper or ()]


PATCH = Patch(
    model_type="qwen3_vl",
    released=(12,),
    encode=encode,
    geometry=qwen2_vl.geometry,
    vision_tower="visual",
    rope="half, M-RoPE",
    placeholders=Placeholders("Qwen3VLProcessor", canvas=qwen2_vl.canvas, write=qwen2_vl.write, inputs=qwen2_vl.inputs),
)


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny Qwen3-VL: one deepstack layer."""
    from transformers import Qwen3VLConfig, Qwen3VLProcessor, Qwen3VLVideoProcessor

    parts = qwen2_vl.tiny_parts(kit)
    processor = Qwen3VLProcessor(**parts, video_processor=Qwen3VLVideoProcessor(patch_size=kit.PATCH_SIZE))
    tower = qwen2_vl.tiny_tower(kit, num_position_embeddings=64, deepstack_visual_indexes=[0])
    config = Qwen3VLConfig(
        vision_config=tower,
        text_config=kit.text("qwen3_vl_text", **qwen2_vl.tiny_config(kit)),
        **qwen2_vl.tiny_ids(kit),
    )
    return config, processor
