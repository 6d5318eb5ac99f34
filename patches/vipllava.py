"""ViP-LLaVA: LLaVA-1.5 whose projector reads several layers of the CLIP tower side by side."""

from __future__ import annotations

from typing import Any

from dynimg_plugin.families import Patch, encode_natively

PATCH = Patch(model_type="vipllava", encode=encode_natively, stacked=True)


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny ViP-LLaVA: CLIP of 24 x 24 patches, two of its layers, Llama."""
    from transformers import LlavaProcessor, VipLlavaConfig

    processor = LlavaProcessor(
        kit.clip_images(), kit.tokenizer, num_additional_image_tokens=1, **kit.patch_and_template()
    )
    layers = dict.fromkeys(("vision_feature_layer", "vision_feature_layers"), (-1, -2))  # as releases call them
    config = VipLlavaConfig(vision_config=kit.clip_tower(), text_config=kit.text("llama"), **layers, **kit.image_ids())
    return config, processor
