"""LLaVA-1.5: CLIP or SigLIP tower (or timm, by assembling/), MLP projector, Llama-style decoder; on the image path."""

from __future__ import annotations

from typing import Any

from dynimg_plugin.families import Patch

PATCH = Patch(model_type="llava")


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny LLaVA-1.5: CLIP of 24 x 24 patches, Llama."""
    from transformers import LlavaConfig, LlavaProcessor

    processor = LlavaProcessor(
        kit.clip_images(), kit.tokenizer, num_additional_image_tokens=1, **kit.patch_and_template()
    )
    return LlavaConfig(vision_config=kit.clip_tower(), text_config=kit.text("llama"), **kit.image_ids()), processor
