"""Mistral Small 3.1 (Pixtral tower): any resolution, 2 x 2 patches merged, so a DynImg of 336 px is 12 x 12 tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynimg_plugin.compat import image_features
from dynimg_plugin.families import Patch
from dynimg_plugin.placeholders import Placeholders

SIDE = 12  # merged cells: any resolution is native, so the paper's grid itself is taken


def geometry(config: Any) -> tuple[int, int]:
    """12 x 12 cells of 2 x 2 patches: 28 px with patches of 14."""
    return SIDE, config.vision_config.patch_size * config.spatial_merge_size


def canvas(base: Any) -> tuple[int, int]:
    """As geometry(), from the processor: (336, 12)."""
    return SIDE * base.patch_size * base.spatial_merge_size, SIDE


def encode(core: Any, pixels: Tensor) -> Tensor:
    """As the class does with images of this size: (m, 3, H, W) -> (m, 144, c)."""
    sizes = torch.tensor([pixels.shape[-2:]] * len(pixels), device=pixels.device)
    return torch.stack(tuple(image_features(core, pixels.to(core.vision_tower.dtype), image_sizes=sizes)))


def write(base: Any, dynimgs: int, side: int) -> str:
    """Every DynImg as the family writes an image: a break after each row of tokens, an end after the last."""
    row = base.image_token * side
    return (base.image_break_token.join([row] * side) + base.image_end_token) * dynimgs


PATCH = Patch(
    model_type="mistral3",
    released=(12,),
    encode=encode,
    geometry=geometry,
    placeholders=Placeholders("PixtralProcessor", canvas=canvas, write=write),
)


def tiny(kit: Any) -> tuple[Any, Any]:
    """(config, processor) of a random tiny Mistral 3: Pixtral tower, Mistral."""
    from transformers import Mistral3Config, PixtralImageProcessor, PixtralProcessor

    kit.name_tokens("[IMG_BREAK]", "[IMG_END]", image_token="[IMG]", video_token="<video>")
    side = SIDE * 2 * kit.PATCH_SIZE
    processor = PixtralProcessor(
        PixtralImageProcessor(patch_size=2 * kit.PATCH_SIZE, size={"longest_edge": side}),
        kit.tokenizer,
        patch_size=kit.PATCH_SIZE,
        spatial_merge_size=2,
        chat_template=kit.template("[IMG]"),
    )
    tower = {
        "model_type": "pixtral",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
        "image_size": 2 * side,
        "patch_size": kit.PATCH_SIZE,
    }
    config = Mistral3Config(
        vision_config=tower, text_config=kit.text("mistral"), spatial_merge_size=2, **kit.image_ids()
    )
    return config, processor
