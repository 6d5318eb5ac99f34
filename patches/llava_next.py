"""LLaVA-NeXT (1.6): LLaVA-1.5 with any-resolution images. A DynImg is one image of the tower's size, no tiling."""

from __future__ import annotations

from typing import Any

from dynimg_plugin.families import Patch

PATCH = Patch(model_type="llava_next")


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny LLaVA-NeXT: CLIP of 24 x 24 patches, Llama."""
    from transformers import LlavaNextConfig, LlavaNextImageProcessor, LlavaNextProcessor

    images = LlavaNextImageProcessor(**kit.clip_sizes(), image_grid_pinpoints=kit.pinpoints(kit.CLIP_SIZE))
    processor = LlavaNextProcessor(images, kit.tokenizer, num_additional_image_tokens=1, **kit.patch_and_template())
    config = LlavaNextConfig(
        vision_config=kit.clip_tower(),
        text_config=kit.text("llama"),
        image_grid_pinpoints=kit.pinpoints(kit.CLIP_SIZE),
        **kit.image_ids(),
    )
    return config, processor
