"""GLM-4.1V: merges 2 x 2 patches as Qwen2-VL does; its rotary embedding is interleaved, partial and M-RoPE."""

from __future__ import annotations

from typing import Any

from dynimg_plugin.compat import rope_fields
from dynimg_plugin.families import Patch
from dynimg_plugin.patches import qwen2_vl
from dynimg_plugin.placeholders import Placeholders

BETWEEN = "<|end_of_image|><|begin_of_image|>"


def write(base: Any, dynimgs: int, side: int) -> str:
    """Every DynImg between image tokens of its own, of which the template has written the outer two."""
    return BETWEEN.join([base.image_token * side**2] * dynimgs)


PATCH = Patch(
    model_type="glm4v",
    released=(12,),
    encode=qwen2_vl.encode,
    geometry=qwen2_vl.geometry,
    vision_tower="visual",
    rope="interleaved, M-RoPE",
    placeholders=Placeholders("Glm4vProcessor", canvas=qwen2_vl.canvas, write=write, inputs=qwen2_vl.inputs),
)


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny GLM-4.1V."""
    from transformers import Glm4vConfig, Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

    kit.name_tokens(
        *(f"<|{where}_of_{what}|>" for what in ("image", "video") for where in ("begin", "end")),
        image_token="<|image|>",
        video_token="<|video|>",
    )
    side = qwen2_vl.SIDE * 2 * kit.PATCH_SIZE
    sizes = {"patch_size": kit.PATCH_SIZE, "size": {"shortest_edge": side**2, "longest_edge": 8 * side**2}}
    processor = Glm4vProcessor(
        Glm4vImageProcessor(**sizes),
        kit.tokenizer,
        Glm4vVideoProcessor(**sizes),
        chat_template=kit.template("<|begin_of_image|><|image|><|end_of_image|>"),
    )
    tower = qwen2_vl.tiny_tower(kit, image_size=side)
    rope = rope_fields(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1], partial_rotary_factor=0.5)
    text = kit.text("glm4v_text", **rope, head_dim=16)
    return Glm4vConfig(vision_config=tower, text_config=text, **kit.image_ids(), **kit.video_ids()), processor
