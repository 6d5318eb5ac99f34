"""Helpers for tests that run patched models."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import torch
from conftest import FAMILIES, FEW, families_with
from PIL import Image

from dynimg_plugin import DynImgConfig, DynImgProcessor, apply_dynimg
from dynimg_plugin.families import find_patch
from dynimg_plugin.patching import OF_LLAVA
from dynimg_plugin.tiny import build_tiny

__all__ = ["AXES", "FAMILIES", "FEW", "families_with"]

AXES = ("theta_t", "theta_h", "theta_w")
built = cache(build_tiny)


def noise_video(seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (20, 48, 64, 3), dtype=torch.uint8, generator=generator)


def fresh(family: str) -> tuple[Any, Any]:
    """A copy of the family's tiny model of its own, and its processor."""
    model, base = built(family)
    return deepcopy(model), base


def fingerprint(model: Any) -> dict[str, Any]:
    """Every module with its own attributes and hooks."""
    return {
        name: (type(module), set(module.__dict__), list(module._forward_hooks), list(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }


def patched(family: str, config: DynImgConfig | None = None, **options: Any) -> tuple[Any, DynImgProcessor]:
    model, base = fresh(family)
    config = config or DynImgConfig()
    return apply_dynimg(model, config, **options), DynImgProcessor(base, config)


def ordinary_image(base: Any) -> Any:
    """Inputs of a question about a picture, as the family's own processor makes them."""
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    text = base.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = base(images=Image.new("RGB", (90, 60), "red"), text=[text])
    inputs.update({name: torch.stack(v) for name, v in inputs.items() if isinstance(v, list) and torch.is_tensor(v[0])})
    return inputs.convert_to_tensors("pt")  # GLM's processor warns of tensors that it makes itself


def decoder(model: Any) -> Any:
    if hasattr(model, OF_LLAVA):
        return model.get_model()
    return model.model.get_submodule(find_patch(model.config.model_type).language_model)


def rotary(model: Any) -> Any:
    return decoder(model).rotary_emb


def randomise_theta(model: Any, scale: float = 0.5) -> None:
    generator = torch.Generator().manual_seed(7)
    for name in AXES:
        theta = getattr(rotary(model), name)
        theta.data = scale * torch.randn(theta.shape, generator=generator)


def sharpen(model: Any) -> None:
    """Make attention pointed, so that positions matter to the logits of a random model."""
    for layer in decoder(model).layers:
        attention = layer.self_attn
        for name, factor in (("q_proj", 12), ("k_proj", 12), ("v_proj", 6), ("o_proj", 6)):
            getattr(attention, name).weight.data *= factor
        for name in ("q_norm", "k_norm"):  # where they are, they undo a larger projection
            if hasattr(attention, name):
                getattr(attention, name).weight.data += 5


def enable_checkpointing(model: Any) -> None:
    """Not reentrant, under the name that this release has for it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def unpatched_logits(plain: Any, model: Any, inputs: Any) -> torch.Tensor:
    """Logits of the unpatched `plain` on the visual features that the patched `model` computes."""
    plain.model.get_image_features = lambda *_, **__: features_of(model, inputs)
    return plain(**inputs).logits


def pixels_of(inputs: Any) -> torch.Tensor:
    """The DynImgs among a model's inputs; Video-LLaVA calls them otherwise in transformers 4."""
    return inputs[next(name for name in inputs if name.startswith("pixel_values"))]


def features_of(model: Any, inputs: Any) -> Any:
    """The visual features of the DynImgs, in the form that this release of transformers takes."""
    return model.model.get_image_features(pixels_of(inputs))
