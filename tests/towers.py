"""Helpers for tests of fusion="tokens": one tiny LLaVA per kind of tower, and masks put into their attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from modelling import built
from torch import Tensor

from dynimg_plugin import DynImgConfig, DynImgProcessor, Patch, apply_dynimg
from dynimg_plugin.tiny import Kit, build_from

KINDS = ("siglip", "clip", "timm")
GRID = 27


def encode_timm(core: Any, pixels: Tensor) -> Tensor:
    """timm's wrapper folds hidden states into maps (m, c, h, w); the class token is left out there."""
    maps = core.vision_tower(pixels, output_hidden_states=True, do_pooling=False).hidden_states[-1]
    return core.multi_modal_projector(maps.flatten(2).transpose(1, 2))


def timm_grid(config: Any) -> tuple[int, int]:
    return GRID, config.vision_config.model_args["patch_size"]


TIMM = Patch(model_type="llava", encode=encode_timm, geometry=timm_grid)


@cache
def timm_llava() -> tuple[Any, Any]:
    """(model, processor) of a LLaVA whose tower is timm's ViT with a class token, 27 x 27 patches."""
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaProcessor, TimmWrapperConfig

    kit = Kit()
    shape = {"img_size": kit.SIGLIP_SIZE, "patch_size": kit.PATCH_SIZE, "embed_dim": 32, "depth": 2, "num_heads": 2}
    tower = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=shape, hidden_size=32)
    images = CLIPImageProcessor(**kit.clip_sizes(kit.SIGLIP_SIZE))
    processor = LlavaProcessor(images, kit.tokenizer, num_additional_image_tokens=1, **kit.patch_and_template())
    config = LlavaConfig(vision_config=tower, text_config=kit.text("llama"), **kit.image_ids())
    return build_from(kit, config, processor)


def plain(kind: str) -> tuple[Any, Any, Patch | None]:
    """(model of its own, base processor, Patch where the family's own does not fit)."""
    model, base = timm_llava() if kind == "timm" else built({"siglip": "llava_onevision", "clip": "llava"}[kind])
    model = deepcopy(model)
    for module in model.model.vision_tower.modules():  # so that attention matters to random features
        if isinstance(module, torch.nn.Linear):
            module.weight.data *= 6
    return model, base, TIMM if kind == "timm" else None


def joined(kind: str, **options: Any) -> tuple[Any, DynImgProcessor]:
    """A model with fusion="tokens" whose slots are not zero, and its processor."""
    model, base, patch = plain(kind)
    config = DynImgConfig(fusion="tokens", **{"num_images": 2, **options})
    apply_dynimg(model, config, patch=patch)
    model.model.prompt_slots.slot_embedding.data = torch.randn(4, 32, generator=torch.Generator().manual_seed(3))
    return model, DynImgProcessor(base, config, patch=patch)


@contextmanager
def masked(model: Any, mask: Tensor) -> Iterator[None]:
    """Meanwhile every attention of the tower gets this additive mask (s, s)."""
    name = "attn_mask" if hasattr(model.model.vision_tower, "timm_model") else "attention_mask"
    attentions = [m for m in model.model.vision_tower.modules() if type(m).__name__.endswith("Attention")]
    handles = [
        attention.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, name: mask[None, None]}), with_kwargs=True
        )
        for attention in attentions
    ]
    assert len(handles) == 2
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
