"""Gemma 3: 64 x 64 SigLIP patches, averaged to 16 x 16 tokens by its projector, are pooled; a DynImg is 896 px."""

from __future__ import annotations

from typing import Any

from dynimg_plugin.families import Patch, encode_natively
from dynimg_plugin.placeholders import Placeholders, TokenTypes


def geometry(config: Any) -> tuple[int, int]:
    """Tokens per side and pixels of a token's side: 896 px, 256 tokens -> (16, 56)."""
    side = round(config.mm_tokens_per_image**0.5)
    return side, config.vision_config.image_size // side


def canvas(base: Any) -> tuple[int, int]:
    """As geometry(), from the processor: (896, 16)."""
    return base.image_processor.size["height"], round(base.image_seq_length**0.5)


def token(base: Any) -> str:
    """Visual features replace soft tokens."""
    return base.tokenizer.image_token


def mark(base: Any) -> str:
    """Prompts hold <start_of_image>, which soft tokens are to follow."""
    return base.boi_token


def write(base: Any, dynimgs: int, side: int) -> str:
    """Every DynImg as the family writes an image: it attends to itself in both directions, and to no other."""
    return f"\n\n{base.boi_token}{token(base) * side**2}{base.tokenizer.eoi_token}\n\n" * dynimgs


# From its token types the class makes blocks that attend in both directions.
PATCH = Patch(
    model_type="gemma3",
    released=(16,),
    encode=encode_natively,
    geometry=geometry,
    stacked=True,
    placeholders=Placeholders(
        "Gemma3Processor", canvas=canvas, token=token, mark=mark, write=write, inputs=TokenTypes("token_type_ids")
    ),
)


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny Gemma 3: 32 x 32 patches, 16 x 16 tokens, a sliding and a full layer."""
    from transformers import Gemma3Config, Gemma3ImageProcessor, Gemma3Processor

    kit.name_tokens(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    side = 32 * kit.PATCH_SIZE
    processor = Gemma3Processor(
        Gemma3ImageProcessor(size=kit.square(side)),
        kit.tokenizer,
        image_seq_length=256,
        chat_template=kit.template("<start_of_image>"),
    )
    text = kit.text("gemma3_text", head_dim=16, layer_types=["sliding_attention", "full_attention"])
    config = Gemma3Config(
        vision_config=kit.siglip_tower(side), text_config=text, mm_tokens_per_image=256, **kit.image_ids()
    )
    return config, processor
