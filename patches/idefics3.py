"""Idefics3: 26 x 26 patches of its SigLIP tower are shuffled to 13 x 13 tokens, which are pooled; no tiling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynimg_plugin.families import Patch
from dynimg_plugin.placeholders import Placeholders


def geometry(config: Any) -> tuple[int, int]:
    """Tokens per side and pixels of a token's side: 364 px, patches of 14, 2 x 2 to a token -> (13, 28)."""
    cell = config.vision_config.patch_size * config.scale_factor
    return config.vision_config.image_size // cell, cell


def canvas(base: Any) -> tuple[int, int]:
    """As geometry(), from the processor: (364, 13)."""
    size = base.image_processor.max_image_size
    return size["longest_edge"], round(base.image_seq_len**0.5)


def encode(core: Any, pixels: Tensor) -> Tensor:
    """Tower and connector, every patch seen: (m, 3, H, W) -> (m, tokens, c)."""
    side = core.config.vision_config.image_size // core.config.vision_config.patch_size
    seen = torch.ones(len(pixels), side, side, dtype=torch.bool, device=pixels.device)
    tower = core.vision_model(pixel_values=pixels.to(core.dtype), patch_attention_mask=seen, return_dict=True)
    return core.connector(tower.last_hidden_state)


def write(base: Any, dynimgs: int, side: int) -> str:
    """Every DynImg as the family writes a whole image."""
    around, whole = base.fake_image_token, base.global_image_tag
    return f"{around}{whole}{base.image_token * side**2}{around}" * dynimgs


PATCH = Patch(
    model_type="idefics3",
    released=(13,),
    language_model="text_model",
    encode=encode,
    geometry=geometry,
    stacked=True,
    vision_tower="vision_model",
    dims=6,
    placeholders=Placeholders("Idefics3Processor", canvas=canvas, write=write),
)


def tiny_config(kit: Any, side: int, scale: int) -> dict[str, Any]:
    """Tower of `side` pixels whose patches are merged `scale` x `scale`, and a Llama decoder."""
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "vision_config": {**vision, "image_size": side, "patch_size": kit.PATCH_SIZE},
        "text_config": kit.text("llama"),
        "scale_factor": scale,
        **kit.image_ids(),
    }


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny Idefics3: 26 x 26 patches, Llama."""
    from transformers import Idefics3Config, Idefics3ImageProcessor, Idefics3Processor

    kit.name_tokens(
        "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", image_token="<image>", video_token="<video>"
    )
    side = 26 * kit.PATCH_SIZE
    images = Idefics3ImageProcessor(
        size={"longest_edge": side}, max_image_size={"longest_edge": side}, do_image_splitting=False
    )
    processor = Idefics3Processor(images, kit.tokenizer, image_seq_len=169, chat_template=kit.CHAT_TEMPLATE)
    return Idefics3Config(**tiny_config(kit, side, 2)), processor
