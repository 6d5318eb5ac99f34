"""How a family's processor writes visual tokens into a prompt, and which image size it prepares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Mask = list[list[int]]


def square_canvas(base: Any) -> tuple[int, int]:
    """Image size in pixels and patches per side of the tower that a LLaVA-like processor prepares for.

    LLaVA-1.5: 336 px, patch 14 -> (336, 24). LLaVA-OneVision: 384 px, 729 tokens -> (384, 27).
    """
    processor = base.image_processor
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    size = dict(crop or processor.size)
    image_size = size.get("height") or size.get("shortest_edge")
    patch, tokens = getattr(base, "patch_size", None), getattr(base, "num_image_tokens", None)
    if image_size and patch:
        return image_size, image_size // patch
    if image_size and tokens:
        return image_size, round(tokens**0.5)
    raise ValueError(
        f"{type(base).__name__} tells neither patch_size nor num_image_tokens (image size {size}); "
        "set processor.patch_size"
    )


def image_token(base: Any) -> str:
    """The token that a prompt holds for a picture and that visual features replace: the same in most families."""
    return base.image_token


def one_run(base: Any, dynimgs: int, side: int) -> str:
    """All DynImgs as one run of placeholders."""
    return image_token(base) * (dynimgs * side**2)


@dataclass(frozen=True)
class Token:
    """The same token whatever the processor calls its image token."""

    text: str

    def __call__(self, base: Any) -> str:
        return self.text


@dataclass(frozen=True)
class Wrapped:
    """Every DynImg as a run of placeholders between two texts."""

    before: str
    token: str
    after: str

    def __call__(self, base: Any, dynimgs: int, side: int) -> str:
        return (self.before + self.token * side**2 + self.after) * dynimgs


@dataclass(frozen=True)
class TokenTypes:
    """The mask of visual tokens as a model input of this name."""

    name: str

    def __call__(self, base: Any, mask: Mask, dynimgs: int, side: int) -> dict[str, Any]:
        return {self.name: mask}


@dataclass(frozen=True)
class Fixed:
    """A geometry, or a canvas, that is the same whatever the config: two whole numbers."""

    first: int
    second: int

    def __call__(self, _: Any) -> tuple[int, int]:
        return self.first, self.second


def no_inputs(base: Any, mask: Mask, dynimgs: int, side: int) -> dict[str, Any]:
    """Nothing beyond input_ids, attention_mask and pixel_values."""
    return {}


@dataclass(frozen=True)
class Placeholders:
    """The processor's half of a family. The defaults are LLaVA's.

    Attributes:
        processor: class name of the family's processor, by which DynImgProcessor finds it; None: the default.
        canvas: base processor -> (image size in pixels, cells per side).
        token: base processor -> the token that visual features replace.
        mark: base processor -> the token that a prompt holds for a picture.
        write: (base processor, DynImgs, side) -> what stands in a prompt for so many DynImgs of side * side tokens, in
            place of one image token. Separators among them are text: their (t, h, w) is 0.
        inputs: (base processor, mask (b, s) with 1 at visual tokens, DynImgs of the batch, side) -> further model
            inputs, such as token types and image grids.
    """

    processor: str | None = None
    canvas: Callable[[Any], tuple[int, int]] = square_canvas
    token: Callable[[Any], str] = image_token
    mark: Callable[[Any], str] = image_token
    write: Callable[[Any, int, int], str] = one_run
    inputs: Callable[[Any, Mask, int, int], dict[str, Any]] = no_inputs
