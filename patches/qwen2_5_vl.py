"""Qwen2.5-VL: as Qwen2-VL, with a tower whose inner layers attend within windows."""

from __future__ import annotations

from typing import Any

from dynimg_plugin.families import Patch
from dynimg_plugin.patches import qwen2_vl
from dynimg_plugin.placeholders import Placeholders

PATCH = Patch(
    model_type="qwen2_5_vl",
    released=(12,),
    encode=qwen2_vl.encode,
    geometry=qwen2_vl.geometry,
    vision_tower="visual",
    rope="half, M-RoPE",
    placeholders=Placeholders(
        "Qwen2_5_VLProcessor", canvas=qwen2_vl.canvas, write=qwen2_vl.write, inputs=qwen2_vl.inputs
    ),
)


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny Qwen2.5-VL: one layer of the tower in windows of 2 x 2 cells."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor

    parts = qwen2_vl.tiny_parts(kit)
    processor = Qwen2_5_VLProcessor(**parts, video_processor=Qwen2VLVideoProcessor(patch_size=kit.PATCH_SIZE))
    tower = qwen2_vl.tiny_tower(kit, window_size=4 * kit.PATCH_SIZE, fullatt_block_indexes=[1])
    config = Qwen2_5_VLConfig(
        vision_config=tower,
        text_config=kit.text("qwen2_5_vl_text", **qwen2_vl.tiny_config(kit)),
        **qwen2_vl.tiny_ids(kit),
    )
    return config, processor
