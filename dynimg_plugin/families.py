"""Model families: the names by which apply_dynimg() finds its way around a model, built in or from other packages."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from dynimg_plugin.compat import image_features
from dynimg_plugin.placeholders import Placeholders

ENTRY_POINTS = "dynimg_plugin.patches"
FROM_CONFIG = ("vision_feature_layer", "vision_feature_select_strategy")  # as the classes' forward() hands them on


def encode_llava(core: Any, pixels: Tensor) -> Tensor:
    """Vision tower -> selected hidden states -> projector, as all LLaVA families do: (m, 3, H, W) -> (m, g * g, c).

    A tower of timm hands out maps (m, c, g, g), which LLaVA's own classes do not read.
    """
    layer, strategy = core.config.vision_feature_layer, core.config.vision_feature_select_strategy
    hidden = core.vision_tower(pixels, output_hidden_states=layer, return_dict=True).hidden_states
    chosen = [hidden[i] for i in ([layer] if isinstance(layer, int) else layer)]
    features = torch.cat([states.flatten(2).mT if states.ndim == 4 else states for states in chosen], dim=-1)
    return core.multi_modal_projector(features[:, 1:] if strategy == "default" else features)


def encode_natively(core: Any, pixels: Tensor) -> Tensor:
    """As the class's own get_image_features() encodes images of the tower's size: (m, 3, H, W) -> (m, tokens, c)."""
    method = type(core).get_image_features
    options = [name for name in FROM_CONFIG if name in signature(method).parameters and hasattr(core.config, name)]
    given = {name: getattr(core.config, name) for name in options}
    features = image_features(core, pixels, **given)
    return (features if isinstance(features, Tensor) else torch.stack(tuple(features))).flatten(1, -2)


def square_tower(config: Any) -> tuple[int, int]:
    """Patches per side and pixels of a patch's side of a plain ViT, from the model's config."""
    vision = config.vision_config
    return vision.image_size // vision.patch_size, vision.patch_size


@dataclass(frozen=True)
class Patch:
    """The names by which one model family is patched.

    Attributes:
        model_type: `model.config.model_type` of the family.
        core: path of the inner model that merges visual features into the text.
        language_model: path of the decoder, from the core.
        rotary: path of its rotary embedding, from the decoder.
        layers: path of its decoder layers, from the decoder.
        entry: the core's method that returns visual features; DynImgs enter there, other inputs pass through.
        encode: (core, pixels (m, 3, H, W)) -> projected patch features (m, grid * grid, c); where deeper layers of the
            language model take features too, a tuple of them and a list of those.
        geometry: model's config -> (cells per side, pixels of a cell's side) of the projected features; a tower that
            merges 2 x 2 patches of 14 px has cells of 28 px, so that no cell holds pixels of two frames.
        vision_tower: path of the tower that encodes DynImgs, from the core; fusion="tokens" alone needs it.
        stacked: the core takes the features as one tensor (rows, tokens, c) instead of a list of (tokens, c).
        dims: dimensions of pixel_values by which DynImgs are known, (rows, images, 3, H, W); 6, with an axis of 1 after
            the images, where the family's own images have 5.
        released: cells per side of the family's released checkpoints, as far as we know; only the table reads it.
        rope: layout of the rotary embedding, with "M-RoPE" where it has three position axes of its own.
        placeholders: the processor's half.
    """

    model_type: str
    core: str = "model"
    language_model: str = "language_model"
    rotary: str = "rotary_emb"
    layers: str = "layers"
    entry: str = "get_image_features"
    encode: Callable[[Any, Tensor], Any] = encode_llava
    geometry: Callable[[Any], tuple[int, int]] = square_tower
    vision_tower: str = "vision_tower"
    stacked: bool = False
    dims: int = 5
    released: tuple[int, ...] = (24,)
    rope: str = "half"
    placeholders: Placeholders = field(default_factory=Placeholders)

    def tower(self, config: Any) -> tuple[int, int]:
        """Cells per side and pixels of a cell's side of the projected features, from the model's config."""
        return self.geometry(config)


def supported_families() -> list[str]:
    """Model types that apply_dynimg() knows: the built-in ones and those of installed third-party packages."""
    return sorted({*built_in_families(), *(point.name for point in entry_points(group=ENTRY_POINTS))})


def find_patch(model_type: str) -> Patch:
    """The Patch of a family.

    Raises:
        ValueError: for an unknown family; it lists the known ones and says how to add one.
    """
    if model_type in built_in_families():
        return family_module(model_type).PATCH
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == model_type:
            return point.load()
    raise ValueError(
        f"model family {model_type!r} is not supported; supported: {', '.join(supported_families())}. "
        "Give apply_dynimg(model, patch=Patch(...)) or see 'Add a family' in CONTRIBUTING.md"
    )


def patch_of_processor(base: Any) -> Patch | None:
    """The Patch of the family whose processor this is; None for a processor that no family names."""
    name = type(base).__name__
    patches = map(find_patch, supported_families())
    return next((patch for patch in patches if patch.placeholders.processor == name), None)


def family_module(model_type: str) -> Any:
    """The built-in module `dynimg_plugin.patches.<model_type>`."""
    return import_module(f"{ENTRY_POINTS}.{model_type}")


def built_in_families() -> list[str]:
    """Model types with a file of their own in `dynimg_plugin.patches`; its folders are no families of transformers."""
    return [module.name for module in pkgutil.iter_modules(import_module(ENTRY_POINTS).__path__) if not module.ispkg]
