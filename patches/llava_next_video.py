"""LLaVA-NeXT-Video: DynImgs enter on the image path, so its spatial resampler for video frames is not used."""

from __future__ import annotations

from typing import Any

from dynimg_plugin.families import Patch

PATCH = Patch(model_type="llava_next_video")


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny LLaVA-NeXT-Video: CLIP of 24 x 24 patches, Llama."""
    from transformers import (
        LlavaNextImageProcessor,
        LlavaNextVideoConfig,
        LlavaNextVideoProcessor,
        LlavaNextVideoVideoProcessor,
    )

    kit.name_tokens(processor=LlavaNextVideoProcessor, image_token="<image>", video_token="<video>")
    images = LlavaNextImageProcessor(**kit.clip_sizes(), image_grid_pinpoints=kit.pinpoints(kit.CLIP_SIZE))
    processor = LlavaNextVideoProcessor(
        video_processor=LlavaNextVideoVideoProcessor(**kit.clip_sizes()),
        image_processor=images,
        tokenizer=kit.tokenizer,
        num_additional_image_tokens=1,
        **kit.patch_and_template(),
    )
    config = LlavaNextVideoConfig(
        vision_config=kit.clip_tower(),
        text_config=kit.text("llama"),
        image_grid_pinpoints=kit.pinpoints(kit.CLIP_SIZE),
        **kit.image_ids(),
        **kit.video_ids(),
    )
    return config, processor
