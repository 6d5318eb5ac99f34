"""Helpers for tests that run patched models."""

from __future__ import annotations

from typing import Any

import torch

from dynimg_plugin import DynImgConfig, DynImgProcessor, apply_dynimg
from dynimg_plugin.families import built_in_families
from dynimg_plugin.tiny import build_tiny

AXES = ("theta_t", "theta_h", "theta_w")
FAMILIES = built_in_families()


def noise_video(seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (20, 48, 64, 3), dtype=torch.uint8, generator=generator)


def patched(family: str, config: DynImgConfig | None = None, **options: Any) -> tuple[Any, DynImgProcessor]:
    model, base = build_tiny(family)
    config = config or DynImgConfig()
    return apply_dynimg(model, config, **options), DynImgProcessor(base, config)


def rotary(model: Any) -> Any:
    return model.model.language_model.rotary_emb


def randomise_theta(model: Any, scale: float = 0.5) -> None:
    generator = torch.Generator().manual_seed(7)
    for name in AXES:
        theta = getattr(rotary(model), name)
        theta.data = scale * torch.randn(theta.shape, generator=generator)


def sharpen(model: Any) -> None:
    """Make attention pointed, so that positions matter to the logits of a random model."""
    for layer in model.model.language_model.layers:
        for name, factor in (("q_proj", 12), ("k_proj", 12), ("v_proj", 6), ("o_proj", 6)):
            getattr(layer.self_attn, name).weight.data *= factor


def unpatched_logits(plain: Any, model: Any, inputs: Any) -> torch.Tensor:
    """Logits of the unpatched `plain` on the visual tokens that the patched `model` computes."""
    features = torch.cat(model.model.get_image_features(inputs["pixel_values"]).pooler_output)
    embeds = plain.get_input_embeddings()(inputs["input_ids"])
    mask = (inputs["input_ids"] == plain.config.image_token_id)[..., None]
    embeds = embeds.masked_scatter(mask, features.to(embeds.dtype))
    return plain(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits
