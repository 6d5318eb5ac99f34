"""SmolVLM: as Idefics3. Its released checkpoints have 8 x 8 or 9 x 9 tokens per image, so pooled_size=8."""

from __future__ import annotations

from typing import Any

from dynimg_plugin.families import Patch
from dynimg_plugin.patches import idefics3
from dynimg_plugin.placeholders import Placeholders


def write(base: Any, dynimgs: int, side: int) -> str:
    """Every DynImg as the family writes a whole image."""
    around, whole = base.fake_image_token, base.global_image_token
    return f"{around}{whole}{base.image_token * side**2}{around}" * dynimgs


PATCH = Patch(
    model_type="smolvlm",
    released=(8, 9),
    language_model="text_model",
    encode=idefics3.encode,
    geometry=idefics3.geometry,
    stacked=True,
    vision_tower="vision_model",
    dims=6,
    placeholders=Placeholders("SmolVLMProcessor", canvas=idefics3.canvas, write=write),
)


def tiny(kit: Any, cells: int = 12) -> tuple[Any, Any]:
    """(config, processor) of a random tiny SmolVLM with so many tokens per side, each of 2 x 2 patches; Llama."""
    from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    kit.name_tokens(
        "<end_of_utterance>",
        image_token="<image>",
        video_token="<video>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
    )
    side = cells * 2 * kit.PATCH_SIZE
    edge = {"longest_edge": side}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False),
        kit.tokenizer,
        SmolVLMVideoProcessor(size=edge, max_image_size=edge),
        image_seq_len=cells**2,
        chat_template=kit.CHAT_TEMPLATE,
    )
    return SmolVLMConfig(**idefics3.tiny_config(kit, side, 2)), processor
