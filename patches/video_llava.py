"""Video-LLaVA: LanguageBind image and video towers, Llama-style decoder. DynImgs are images, so the image tower's."""

from __future__ import annotations

from typing import Any

from dynimg_plugin.families import Patch, encode_natively
from dynimg_plugin.placeholders import Placeholders

PATCH = Patch(
    model_type="video_llava",
    released=(16,),
    encode=encode_natively,
    vision_tower="image_tower",
    stacked=True,
    placeholders=Placeholders(processor="VideoLlavaProcessor"),
)


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny Video-LLaVA: CLIP towers of 16 x 16 patches, Llama."""
    from transformers import (
        VideoLlavaConfig,
        VideoLlavaImageProcessor,
        VideoLlavaProcessor,
        VideoLlavaVideoProcessor,
    )

    side = 16 * kit.PATCH_SIZE
    processor = VideoLlavaProcessor(
        VideoLlavaImageProcessor(**kit.clip_sizes(side)),
        VideoLlavaVideoProcessor(**kit.clip_sizes(side)),
        kit.tokenizer,
        **kit.patch_and_template(),
    )
    config = VideoLlavaConfig(
        vision_config=kit.clip_tower(side), text_config=kit.text("llama"), **kit.image_ids(), **kit.video_ids()
    )
    return config, processor
