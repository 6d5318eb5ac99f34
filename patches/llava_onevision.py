"""LLaVA-OneVision: SigLIP tower, Qwen2 decoder. DynImgs enter on the image path, without newline tokens."""

from __future__ import annotations

from typing import Any

from dynimg_plugin.families import Patch

PATCH = Patch(model_type="llava_onevision", released=(27,))


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny LLaVA-OneVision: SigLIP of 27 x 27 patches, Qwen2."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    pinpoints = kit.pinpoints(kit.SIGLIP_SIZE)
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(**kit.siglip_sizes(), image_grid_pinpoints=pinpoints),
        tokenizer=kit.tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(**kit.siglip_sizes()),
        num_image_tokens=(kit.SIGLIP_SIZE // kit.PATCH_SIZE) ** 2,
        vision_feature_select_strategy="full",
        chat_template=kit.CHAT_TEMPLATE,
    )
    config = LlavaOnevisionConfig(
        vision_config=kit.siglip_tower(),
        text_config=kit.text("qwen2"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        **kit.image_ids(),
        **kit.video_ids(),
    )
    return config, processor
