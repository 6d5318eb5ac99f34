"""suggest_patch(): finds the Patch of a model that no family file describes, by trying known ways on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoProcessor

from dynimg_plugin.compat import auto_class, rope_parameters
from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.families import Patch, built_in_families, encode_natively, family_module
from dynimg_plugin.patching import apply_dynimg, remove_dynimg
from dynimg_plugin.placeholders import Fixed, Placeholders, Token, TokenTypes, Wrapped, image_token, no_inputs
from dynimg_plugin.processing import DynImgProcessor
from dynimg_plugin.rope import probe
from dynimg_plugin.suggestion import Suggestion

ENTRY = "get_image_features"
MARK = "~~"
NOT_TEXT = ("vision", "visual", "image", "audio", "video")
TRIED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, StopIteration)


def suggest_patch(model: Any, processor: Any, families: Iterable[str] | None = None) -> Suggestion:
    """Find language model, rotary embedding, tower and placeholders of `model`, and a way of encoding that fits.

    Every way is tried on the model itself with two random pictures: it is taken when the patched model computes, bit
    for bit, what the model alone computes on the same features, and theta has a gradient.

    Args:
        processor: the checkpoint's AutoProcessor.
        families: built-in families whose ways are tried; all by default. What is tried last needs none of them.

    Raises:
        ValueError: a text-only model, a rotary embedding that cannot be wrapped, or no way that fits; it says why.
    """
    check_multimodal(model.config)
    core_path, core = _core(model)
    decoder_path, rotary_path = _decoder(core)
    layout, _ = probe(core.get_submodule(decoder_path).get_submodule(rotary_path))
    sections = rope_parameters(model.config.get_text_config()).get("mrope_section")
    found = {
        "model_type": model.config.model_type,
        "core": core_path,
        "language_model": decoder_path,
        "rotary": rotary_path,
        "rope": layout + (", M-RoPE" if sections else ""),
    }
    tried: dict[str, list[str]] = {}
    for alike, way in _ways(model, core, processor, families):
        patch = replace(way, **found)
        reason = _try(model, core, processor, patch)
        if reason is None:
            released = (patch.tower(model.config)[0],)
            return Suggestion(replace(patch, released=released), alike, type(model).__name__)
        tried.setdefault(reason, []).append(alike)
    reasons = "".join(f"\n  {', '.join(dict.fromkeys(names))}: {reason}" for reason, names in tried.items())
    raise ValueError(
        f"{type(model).__name__}: its language model is {core_path}.{decoder_path} with a {found['rope']} rotary "
        "embedding, but no known way of encoding pictures fits; write encode and placeholders of a Patch yourself, see "
        f"'Add a family' in CONTRIBUTING.md. Tried:{reasons}"
    )


def suggest_for(base: str | Path) -> Suggestion:
    """suggest_patch() for a checkpoint: a hub id or a folder."""
    config = AutoConfig.from_pretrained(base)
    check_multimodal(config)
    model = auto_class(config.model_type).from_pretrained(base).eval()
    return suggest_patch(model, AutoProcessor.from_pretrained(base))


def check_multimodal(config: Any) -> None:
    """ValueError for the config of a text-only model, which has no place where a picture could enter."""
    if getattr(config, "vision_config", None) is None:
        raise ValueError(
            f"{config.model_type!r} is a text-only model: its config has no vision_config, so there is no vision tower "
            "and no projector; give a vision language model"
        )


def _core(model: Any) -> tuple[str, Any]:
    """The innermost module with image features that still holds the language model: (path, module)."""
    owners = [(path, module) for path, module in model.named_modules() if hasattr(type(module), ENTRY)]
    holders = [(path, module) for path, module in owners if next(_decoders(module), None)]
    if not holders:
        raise ValueError(
            f"{type(model).__name__} has no module with {ENTRY}() that holds a decoder with `layers` and a rotary "
            f"embedding; modules with {ENTRY}(): {', '.join(path or '(the model)' for path, _ in owners) or 'none'}"
        )
    return holders[-1]


def _decoders(core: nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in core.named_modules():
        if not any(word in path for word in NOT_TEXT) and isinstance(getattr(module, "layers", None), nn.ModuleList):
            yield from ((path, name) for name, _ in module.named_children() if "rotary" in name)


def _decoder(core: nn.Module) -> tuple[str, str]:
    """(path of the decoder, name of its rotary embedding)."""
    return next(_decoders(core))


def _ways(model: Any, core: Any, processor: Any, families: Iterable[str] | None) -> Iterator[tuple[str, Patch]]:
    """Known families, those with its processor first; then the class's own method as it stands."""
    known = [family_module(name).PATCH for name in (built_in_families() if families is None else families)]
    own = type(processor).__name__
    for patch in sorted(known, key=lambda patch: patch.placeholders.processor != own):
        named = None if patch.placeholders.processor is None else own
        yield patch.model_type, replace(patch, placeholders=replace(patch.placeholders, processor=named))
    yield from ((f"its own {ENTRY}()", patch) for patch in _own_ways(model, core, processor))


@torch.no_grad()
def _own_ways(model: Any, core: Any, processor: Any) -> Iterator[Patch]:
    """One whole picture through the class's own method, its tokens counted, written as the processor writes it."""
    image_size, parameter = _image_size(processor), next(core.parameters())
    if image_size is None:
        return
    try:
        pixels = torch.rand(1, 3, image_size, image_size, dtype=parameter.dtype, device=parameter.device)
        side = round(encode_natively(core, pixels).shape[1] ** 0.5)
        placeholders = _own_placeholders(model, processor, image_size, side)
    except TRIED:  # then there is no such way
        return
    for stacked in (True, False):
        yield Patch(
            model_type="",
            encode=encode_natively,
            geometry=Fixed(side, image_size // side),
            stacked=stacked,
            placeholders=placeholders,
        )


def _image_size(processor: Any) -> int | None:
    images = processor.image_processor
    crop = getattr(images, "crop_size", None) if getattr(images, "do_center_crop", False) else None
    size = dict(crop or getattr(images, "size", None) or {})
    return size.get("height") or size.get("shortest_edge")


def _own_placeholders(model: Any, processor: Any, image_size: int, side: int) -> Placeholders:
    """What the processor writes for one picture, and which token types it adds."""
    token = processor.tokenizer.convert_ids_to_tokens(model.config.image_token_id)
    blank = Image.new("RGB", (image_size, image_size))
    mark = getattr(processor, "boi_token", processor.image_token)  # what a prompt of Gemma 3 holds in any release
    inputs = processor(images=[blank], text=[f"{MARK}{mark}{MARK}"])
    _, written, _ = processor.tokenizer.decode(inputs["input_ids"][0]).split(MARK)
    types = next((name for name in ("token_type_ids", "mm_token_type_ids") if name in inputs), None)
    return Placeholders(
        type(processor).__name__,
        canvas=Fixed(image_size, side),
        token=Token(token),
        mark=image_token if mark == processor.image_token else Token(mark),
        write=Wrapped(written.partition(token)[0], token, written.rpartition(token)[2]),
        inputs=no_inputs if types is None else TokenTypes(types),
    )


def _try(model: Any, core: Any, processor: Any, patch: Patch) -> str | None:
    """None when the patch fits the model, else why not. The model is left as it was."""
    try:
        grid, _ = patch.tower(model.config)
        config = DynImgConfig() if grid >= DynImgConfig().pooled_size else DynImgConfig(pooled_size=8)
        dynimgs = DynImgProcessor(processor, config, patch=patch)
        if odd := _odd_separators(dynimgs):
            return f"it writes {odd[:60]!r}, which this tokenizer has no tokens for"
        side = dynimgs.image_size
        noise = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        inputs = dynimgs(text="What?", images=[list(noise.numpy())], return_tensors="pt").to(model.device)
        apply_dynimg(model, config, patch=patch)
    except TRIED as error:
        return _first_line(error)
    try:
        logits = model(**inputs).logits
        thetas = [value for name, value in model.named_parameters() if ".theta_" in name]
        moved = torch.autograd.grad(logits.float().square().sum(), thetas)
        features = getattr(core, patch.entry)(inputs[dynimgs.pixels])
    except TRIED as error:
        return _first_line(error)
    finally:
        remove_dynimg(model)
    core.__dict__[patch.entry] = lambda *_, **__: features
    try:
        with torch.no_grad():
            alone = model(**inputs).logits
    finally:
        del core.__dict__[patch.entry]
    if not torch.equal(alone, logits):
        return "the patched model's logits are not the model's own"
    return None if all(grad.any() for grad in moved) else "theta gets no gradient"


def _odd_separators(dynimgs: DynImgProcessor) -> str:
    """What a way writes between placeholders, beside white space, that is no token of its own in this tokenizer."""
    text = dynimgs.placeholders.write(dynimgs.base, 2, 2)
    for known in sorted(dynimgs.tokenizer.get_added_vocab(), key=len, reverse=True):
        text = text.replace(known, "")
    return text.strip()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
