"""DynImgs in a model of the `llava` package: this instance's multimodal preparation takes them in place of images.

The package puts features in the place of each image token (-200) itself. It is asked to do so with DynImgs' features,
and with every text token's number for a label: what comes back tells where each token went, whatever the package's
way of padding and truncating, and so where coordinates belong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from dynimg_plugin.composition import compose
from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.coordinates import token_coordinates
from dynimg_plugin.families import Patch
from dynimg_plugin.ops import Implementation, require
from dynimg_plugin.original import newline_as_trained
from dynimg_plugin.patching import OF_LLAVA, Overrides, dynimg_config, install, refuse_peft
from dynimg_plugin.session import Session, encode_dynimgs, extent, part_of
from dynimg_plugin.visuals import as_tensor, normalised, padded

IGNORE, IMAGE = -100, -200  # the package's IGNORE_INDEX and IMAGE_TOKEN_INDEX


class Encoded(tuple):  # type: ignore[type-arg]
    """Features, one (tokens, c) per image token; the package hands it to encode_images() as it would a batch."""

    ndim = 4


@dataclass
class NativeSession(Session):
    """A Session whose coordinates are found by the multimodal preparation, ahead of the decoder."""

    plan: Tensor | None = None  # (rows, s, 3) of the prompts that were prepared last
    generating: bool = False

    def coordinates(
        self,
        core: Any,
        given: dict[str, Any],
        explicit: Tensor | None,
        times: Tensor | None,
        kept: Tensor | None = None,
    ) -> Tensor | None:
        plan = self.plan if explicit is None else explicit
        if plan is None:
            return None
        rows, length, past = extent(given)
        if rows % len(plan) or (length + past < plan.shape[1] and not past and not self.generating):
            raise ValueError(
                f"the decoder was given {rows} rows of {length} tokens, but {len(plan)} of {plan.shape[1]} were "
                "prepared; prepare and run the same prompts"
            )
        return part_of(plan.repeat_interleave(rows // len(plan), 0), past, length)  # beams stand side by side

    def forget(self, *_: Any) -> None:
        """Forward hook of the whole model; during generate() its steps still need what was prepared."""
        if not self.generating:
            self.plan = None


def encode(core: Any, pixels: Tensor) -> Tensor:
    """Tower and projector, as the package's encode_images(): (m, 3, H, W) -> (m, grid * grid, c)."""
    return core.mm_projector(core.get_vision_tower()(pixels))


def apply_dynimg(model: Any, config: DynImgConfig | None = None, *, implementation: Implementation = "auto") -> Any:
    """Patch an instance of the package's LlavaLlamaForCausalLM, LlavaQwenForCausalLM, ... and return it.

    Then `images` of forward() and generate() may be DynImgs: (rows, DynImgs, 3, H, W) without image_sizes, of the rows
    that hold image tokens, or of all rows. A row's DynImgs are shared out evenly among its image tokens: all four for
    one, or one for each of four. Other images go the package's own way. remove_dynimg() and describe_dynimg() serve
    these models too. Call such a model from one thread: its preparation and its decoder share what was prepared last.

    Raises:
        TypeError: it is a peft model.
        ValueError: the tower is not loaded, t_mode="time", or what dynimg_plugin.apply_dynimg() refuses.
    """
    require(implementation)
    refuse_peft(model)
    tower = model.get_vision_tower()
    if tower is None or not tower.is_loaded:
        raise ValueError("its vision tower is not loaded; call model.get_vision_tower().load_model() first")
    config = (config or DynImgConfig()).on_tower(
        grid=tower.num_patches_per_side,
        patch_size=tower.config.patch_size,
        newline=newline_as_trained(model.config.to_dict()),
    )
    if config.t_mode == "time":
        raise ValueError("t_mode='time' has no way through the llava package's arguments; take t_mode='slot'")
    if not config.keeps_all:
        raise ValueError(f"keep={config.keep}: the llava package's models take whole DynImgs only; use keep=1.0")
    if config.fusion == "tokens":
        raise ValueError("fusion='tokens' does not reach the llava package's towers; take fusion='canvas'")
    patch = Patch(model_type=model.config.model_type, language_model="", encode=encode)
    overrides: Overrides = {("", OF_LLAVA): prepare, ("", "encode_images"): encode_images, ("", "generate"): generate}
    session = NativeSession.of(patch, config, implementation)
    install(model, session, overrides)
    if model.get_model().dynimg is session:
        session.handles.append(model.register_forward_hook(session.forget, always_call=True))
    return model


def dynimg_pixels(model: Any, videos: Sequence[Any], *, seed: int | None = None, fps: float = 1.0) -> Tensor:
    """Compose videos for a patched model: (videos, DynImgs, 3, H, W), normalised, on its device and in its dtype.

    Args:
        videos: anything that compose() takes; seed, fps: see there.
    """
    config, tower = dynimg_config(model), model.get_vision_tower()
    rows = [[c for dynimg in compose(v, config, seed=seed, fps=fps) for c in dynimg.images] for v in videos]
    pixels = torch.stack([padded(torch.stack([*map(as_tensor, row)]), tower.config.image_size) for row in rows])
    return normalised(pixels, tower.image_processor).to(model.device, model.dtype)


def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
    """prepare_inputs_labels_for_multimodal() that takes DynImgs too."""
    session, original = self.get_model().dynimg, getattr(type(self), OF_LLAVA)
    bound = signature(original).bind(self, *args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    ids, attention, labels = (given[name] for name in ("input_ids", "attention_mask", "labels"))
    images = {"pixel_values": given["images"], "image_sizes": given["image_sizes"]}
    if not isinstance(given["images"], Tensor) or not session.is_dynimg(images) or ids.shape[1] == 1:
        session.forget()
        return original(self, *args, **kwargs)
    given["attention_mask"] = torch.ones_like(ids) if attention is None else attention
    given["labels"] = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    given["images"] = visuals(self.get_model(), ids.where(given["attention_mask"].bool(), 0), given["images"])
    if "modalities" in given:  # of fewer rows than there are, the package would drop rows
        given["modalities"] = ["video"] * len(ids)
    _, positions, kept, cache, embeds, source = original(*bound.args, **bound.kwargs)
    shown = (source == IGNORE) & kept.bool()
    session.plan = token_coordinates(shown.long(), 1, session.table)
    if labels is not None:
        labels = labels.gather(1, source.clamp(min=0)).where(source != IGNORE, IGNORE)
    return None, positions, None if attention is None else kept, cache, embeds, labels


def visuals(core: Any, ids: Tensor, images: Tensor) -> Encoded:
    """Features for every image token, and nothing for every row without one, which the package asks for too."""
    counts = (ids == IMAGE).sum(-1).tolist()
    holding = [row for row, count in enumerate(counts) if count]
    if not holding or len(images) not in (len(holding), len(ids)):
        raise ValueError(
            f"DynImgs of {len(images)} rows came with {len(ids)} prompts, of which {len(holding)} hold an image token "
            f"({IMAGE}); give those of each row that holds one, or of all rows"
        )
    config, dynimgs = core.dynimg.config, images.shape[1] // core.dynimg.layout.num_canvases
    given = holding if len(images) == len(holding) else range(len(ids))
    features = dict(zip(given, rows_of(core, images), strict=True))
    shares: list[Tensor] = []
    for row, count in enumerate(counts):
        if count and dynimgs % count:
            raise ValueError(f"prompt {row} holds {count} image tokens for {dynimgs} DynImgs; give 1, or one for each")
        if count:
            config.num_newlines(dynimgs // count)  # raises where a token's share is no whole video
        shares += features[row].chunk(count) if count else [features.get(row, features[holding[0]])[:0]]
    return Encoded(shares)


def rows_of(core: Any, images: Tensor) -> list[Tensor]:
    return encode_dynimgs(core, images.to(core.device, core.dtype)).pooler_output


def encode_images(self: Any, images: Any) -> Any:
    return images if isinstance(images, Encoded) else type(self).encode_images(self, images)


def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
    """generate() that keeps the prompts' coordinates until it is done."""
    session = self.get_model().dynimg
    session.plan, session.generating = None, True
    try:
        return type(self).generate(self, *args, **kwargs)
    finally:
        session.plan, session.generating = None, False
