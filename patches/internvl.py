"""InternVL (transformers format): the tower's 32 x 32 patches are shuffled to 16 x 16 tokens, which are pooled."""

from __future__ import annotations

from typing import Any

from dynimg_plugin.families import Patch, encode_natively
from dynimg_plugin.placeholders import Placeholders


def geometry(config: Any) -> tuple[int, int]:
    """Tokens per side and pixels of a token's side: 448 px, patches of 14, 2 x 2 to a token -> (16, 28)."""
    vision, merged = config.vision_config, round(1 / config.downsample_ratio)
    cell = vision.patch_size[0] * merged
    return vision.image_size[0] // cell, cell


def canvas(base: Any) -> tuple[int, int]:
    """As geometry(), from the processor: (448, 16)."""
    return base.image_processor.size["height"], round(base.image_seq_length**0.5)


def write(base: Any, dynimgs: int, side: int) -> str:
    """Every DynImg as the family writes an image: between its own start and end tokens."""
    return f"{base.start_image_token}{base.image_token * side**2}{base.end_image_token}" * dynimgs


PATCH = Patch(
    model_type="internvl",
    released=(16,),
    encode=encode_natively,
    geometry=geometry,
    stacked=True,
    placeholders=Placeholders("InternVLProcessor", canvas=canvas, write=write),
)


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny InternVL: 32 x 32 patches, Qwen2."""
    from transformers import GotOcr2ImageProcessor, InternVLConfig, InternVLProcessor, InternVLVideoProcessor

    kit.name_tokens(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    side = 32 * kit.PATCH_SIZE
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=kit.square(side), crop_to_patches=False),
        kit.tokenizer,
        InternVLVideoProcessor(size=kit.square(side)),
        image_seq_length=256,
        chat_template=kit.template("<IMG_CONTEXT>"),
    )
    tower = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "image_size": [side, side],
        "patch_size": [kit.PATCH_SIZE, kit.PATCH_SIZE],
    }
    config = InternVLConfig(
        vision_config=tower,
        text_config=kit.text("qwen2"),
        image_token_id=kit.token_id("context_image_token"),
        image_seq_length=256,
        tie_word_embeddings=False,
    )
    return config, processor
