"""DynImgProcessor: videos or precomposed DynImgs + text -> model inputs; the tokenizer's only door."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, ProcessorMixin
from transformers.processing_utils import TextKwargs

from dynimg_plugin.budget import kept_beforehand, thinned
from dynimg_plugin.compat import pixel_input
from dynimg_plugin.composition import DynImg, compose
from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.coordinates import CoordinateTable, frame_times, token_coordinates
from dynimg_plugin.families import Patch, patch_of_processor
from dynimg_plugin.hub import config_file
from dynimg_plugin.layout import DynImgLayout
from dynimg_plugin.video import VideoLimits
from dynimg_plugin.visuals import Visual, as_tensor, is_picture, is_video, normalised, open_picture, padded, per_row

VISUAL = ("video", "image")
Group = list[Visual]
# What apply_chat_template() hands on to __call__(); the rest are variables of the template.
FOR_CALL = {*TextKwargs.__annotations__, "return_tensors", "seed", "fps", "return_coordinates"}


class DynImgProcessor(ProcessorMixin):
    """Wraps a checkpoint's own processor; its tokenizer, chat template and normalisation stay in charge.

    Args:
        base: the processor of the checkpoint, e.g. AutoProcessor.from_pretrained(...).
        config: DynImgConfig() when None; grid and patch size are taken from `base`.
        limits: what reading one video may cost; VideoLimits() when None.
        patch: of a family that is not built in; by default the one that names the class of `base`, else LLaVA's way.

    Raises:
        ValueError: when `base` has no image processor or tokenizer, or its image size cannot be told.
    """

    def __init__(
        self,
        base: Any,
        config: DynImgConfig | None = None,
        *,
        limits: VideoLimits | None = None,
        patch: Patch | None = None,
    ) -> None:
        missing = [name for name in ("image_processor", "tokenizer") if getattr(base, name, None) is None]
        if missing:
            raise ValueError(
                f"{type(base).__name__} has no {' and no '.join(missing)}; give the checkpoint's AutoProcessor"
            )
        self.base, self.limits = base, limits
        self.patch = patch or patch_of_processor(base) or Patch(model_type="llava")
        self.placeholders = self.patch.placeholders
        self.image_size, grid = self.placeholders.canvas(base)
        self.config = (config or DynImgConfig()).on_tower(grid=grid, patch_size=self.image_size // grid)
        self.layout = DynImgLayout.from_config(self.config)
        self.table = CoordinateTable.from_layout(self.layout)
        self.tokenizer, self.image_processor = base.tokenizer, base.image_processor
        self.chat_template = base.chat_template
        self.image_token: str = self.placeholders.mark(base)
        self.pixels = pixel_input(self.patch.model_type)
        self.image_token_id: int = base.tokenizer.convert_tokens_to_ids(self.placeholders.token(base))

    def __repr__(self) -> str:
        return f"DynImgProcessor({type(self.base).__name__}, {self.config})"

    @property
    def model_input_names(self) -> list[str]:
        further = self.placeholders.inputs(self.base, [], 1, 1)
        return list(dict.fromkeys([*self.tokenizer.model_input_names, self.pixels, *further]))

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, folder: str | Path, config: DynImgConfig | None = None, **kwargs: Any
    ) -> Self:
        """Load the base processor and, when `folder` holds one and no config is given, its dynimg_config.json."""
        if config is None and (stored := config_file(folder)):
            config = DynImgConfig.from_pretrained(stored.parent)
        return cls(AutoProcessor.from_pretrained(folder, **kwargs), config)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save the base processor and beside it dynimg_config.json."""
        self.config.save_pretrained(save_directory)
        return self.base.save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        *,
        seed: int | None = None,
        fps: float = 1.0,
        return_coordinates: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Model inputs of one question or a batch of them.

        Args:
            text: prompts. A prompt with the image (or video) token has it replaced, one token per video; a prompt
                without one is taken as a user's question and put into the chat template.
            videos: one video, or one per prompt: anything that compose() takes, Clips too; None in a list marks a
                prompt without video.
            images: precomposed DynImgs instead of videos: DynImg objects or images (or their paths) of the DynImg's
                size; one list per prompt, whose items may be lists, one per video. One image token stands for one
                item, or a single one for all of a prompt's.
            seed: see compose(). fps: see compose().
            return_coordinates: add `rope4d_coords` (b, s, 3), which chunked prefill needs.
            kwargs: for the tokenizer: padding, padding_side, truncation, max_length, return_tensors, ...

        Returns:
            input_ids, attention_mask (b, s); pixel_values (rows with DynImgs, images, 3, H, W) fp32, where H = W, or
            with fusion="tokens" the rows of pixels below W hold the prompts; with t_mode="time" also dynimg_times
            (rows with DynImgs, images, frames); and what the family asks for, such as mm_token_type_ids.
        """
        if text is None:
            raise ValueError("text is missing; give one prompt per video")
        prompts = [text] if isinstance(text, str) else list(text)
        visuals = self._visuals(images, videos, len(prompts), seed, fps)
        expanded = [self._expand(prompt, groups) for prompt, groups in zip(prompts, visuals, strict=True)]
        tensors = kwargs.pop("return_tensors", None)
        unknown = sorted(set(kwargs) - set(TextKwargs.__annotations__))
        if unknown:
            raise TypeError(f"DynImgProcessor takes no {', '.join(unknown)}; see its docstring and the tokenizer's")
        first = self.tokenizer.bos_token
        if (
            first
            and kwargs.get("add_special_tokens", True)
            and self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        ):  # the tokenizer writes it again where a template has written it
            expanded = [prompt.removeprefix(first) for prompt in expanded]
        data = dict(self.tokenizer(expanded, **kwargs))
        self._check_placeholders(data["input_ids"], visuals)
        shown = [[visual for group in groups for visual in group] for groups in visuals if groups]
        mask = [[int(token == self.image_token_id) for token in ids] for ids in data["input_ids"]]
        data |= self.placeholders.inputs(self.base, mask, sum(map(len, shown)), self.config.pooled_size)
        if shown:
            data[self.pixels] = self._pixel_values(shown)
            if self.config.t_mode == "time":
                data["dynimg_times"] = torch.stack([self._times(visual) for visual in shown])
        if return_coordinates:
            ids, kept = torch.as_tensor(data["input_ids"]), kept_beforehand(shown, self.layout, self.config)
            times = data.get("dynimg_times")
            data["rope4d_coords"] = token_coordinates(ids, self.image_token_id, self.table, times, kept)
        return BatchFeature(data, tensor_type=tensors)

    def with_keep(self, keep: float) -> Self:
        """The same processor with another token budget; a model of another takes its batches with `dynimg_kept`."""
        other = copy(self)
        other.config = replace(self.config, keep=keep)
        return other

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Any, chat_template: str | None = None, **kwargs: Any
    ) -> Any:
        """As the base's; a video item becomes one image token. With tokenize=True its videos are composed too."""
        tokenize, as_dict = kwargs.pop("tokenize", False), kwargs.pop("return_dict", False)
        batch = conversation if isinstance(conversation[0], list | tuple) else [conversation]
        for_call = {name: kwargs.pop(name) for name in FOR_CALL if name in kwargs} | kwargs.pop("processor_kwargs", {})
        plain = [[_as_images(message) for message in talk] for talk in batch]
        texts = self.base.apply_chat_template(plain, chat_template or self.chat_template, tokenize=False, **kwargs)
        if not tokenize:
            return texts if batch is conversation else texts[0]
        videos = [_media(talk, "video") for talk in batch]
        images = [_media(talk, "image") for talk in batch]
        inputs = self(text=texts, videos=_or_none(videos), images=_or_none(images), **for_call)
        return inputs if as_dict else inputs["input_ids"]

    def compose(self, video: Any, *, seed: int | None = None, fps: float = 1.0) -> list[DynImg]:
        """The DynImgs that `videos=` would make of one video; give them back as `images=`."""
        return compose(video, self.config, seed=seed, fps=fps, limits=self.limits)

    def _visuals(self, images: Any, videos: Any, rows: int, seed: int | None, fps: float) -> list[list[Group]]:
        """Of every prompt, the DynImgs in groups for one image token each: those of a video, or one picture."""
        if images is not None and videos is not None:
            raise ValueError("give videos= or images= (precomposed DynImgs), not both")
        if videos is not None:
            made = per_row(videos, rows, is_video)
            return [[[self._visual(d) for d in self.compose(v, seed=seed, fps=fps)] for v in row] for row in made]
        given = per_row(images, rows, is_picture) if images is not None else [[] for _ in range(rows)]
        return [[[self._visual(d) for d in (e if isinstance(e, list | tuple) else [e])] for e in row] for row in given]

    def _visual(self, image: Any) -> Visual:
        """A DynImg at the tower's image size: frames padded right and below by edge copy, never resized."""
        image = open_picture(image)
        pictures = image.images if isinstance(image, DynImg) else (image,)
        pixels = torch.stack([as_tensor(picture) for picture in pictures])
        height, side = pixels.shape[-2:]
        size, canvas = self.image_size, self.config.canvas_size
        below = (self.layout.rows - self.layout.grid) * (canvas // self.layout.grid)
        slots = tuple(frame.t for frame in image.frames) if isinstance(image, DynImg) else self.layout.slots
        fits = height == side + below and side in (canvas, size) and len(pictures) == self.layout.num_canvases
        if not fits or slots != self.layout.slots:
            raise ValueError(
                f"a precomposed DynImg has {len(pictures)} image(s) of {height} x {side} pixels and slots "
                f"{slots}; this checkpoint with fusion={self.config.fusion!r} takes {self.layout.num_canvases} of "
                f"{canvas + below} x {canvas} and slots {self.layout.slots}; compose it with this processor's config"
            )
        return Visual(padded(pixels, size), image if isinstance(image, DynImg) else None)

    def _expand(self, prompt: str, groups: list[Group]) -> str:
        """Replace each image token by the tokens of its group; a single one may stand for all precomposed DynImgs."""
        tokens = {self.image_token, getattr(self.base, "video_token", "<video>")}
        marker = re.compile("|".join(map(re.escape, tokens)))
        found = len(marker.findall(prompt))
        if groups and not found:
            prompt, found = self._as_question(prompt), 1
        sizes = [len(group) for group in groups]
        if found == 1 and len(groups) > 1:
            sizes = [sum(sizes)]
        if found != len(sizes):
            raise ValueError(
                f"the prompt holds {found} {self.image_token} token(s) but {sum(sizes)} DynImgs in {len(groups)} "
                "group(s) came with it; write one token per video, or one per precomposed DynImg"
            )
        runs = iter(map(self._run, sizes))
        return marker.sub(lambda _: next(runs), prompt)

    def _run(self, dynimgs: int) -> str:
        """The tokens of so many DynImgs. Newline tokens are counted here; the model puts each in its place."""
        token = self.placeholders.token(self.base)
        whole = self.placeholders.write(self.base, dynimgs, self.config.pooled_size)
        return thinned(whole, token, self.layout, self.config) + token * self.config.num_newlines(dynimgs)

    def _as_question(self, question: str) -> str:
        if not self.chat_template:
            return f"{self.image_token}\n{question}"
        content = [{"type": "video"}, {"type": "text", "text": question}]
        return self.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _check_placeholders(self, input_ids: list[list[int]], visuals: list[list[Group]]) -> None:
        for ids, groups in zip(input_ids, visuals, strict=True):
            found = ids.count(self.image_token_id)
            dynimgs = sum(map(len, groups))
            wanted = dynimgs * self.config.tokens_per_image + self.config.num_newlines(dynimgs)
            if found != wanted:
                raise ValueError(
                    f"a prompt has {found} visual tokens where its DynImgs need {wanted}; raise max_length or set "
                    f"truncation=False, and keep {self.placeholders.token(self.base)} out of the text itself"
                )

    def _pixel_values(self, visuals: list[list[Visual]]) -> Tensor:
        """(rows, images * canvases, 3, H, W), see Patch.dims, normalised as the base's image processor does."""
        counts = sorted({len(visual) for visual in visuals})
        if len(counts) > 1:
            raise ValueError(
                f"the prompts of a batch have {' and '.join(map(str, counts))} DynImgs; put prompts with the same "
                "number into one batch (prompts without any may be mixed in)"
            )
        pixels = torch.stack([torch.cat([one.canvases for one in visual]) for visual in visuals])
        values = normalised(pixels, self.image_processor)
        return values.unsqueeze(2) if self.patch.dims == 6 else values

    def _times(self, visual: list[Visual]) -> Tensor:
        """(images, frames); the clock of each video starts at 0 and ticks with its own frames."""
        images = [one.source for one in visual if one.source is not None]
        if len(images) < len(visual):
            raise ValueError("t_mode='time' needs the frames' times: give videos= or DynImg objects, not bare pictures")
        videos = [list(group) for _, group in groupby(images, key=lambda image: id(image.record))]
        return torch.cat([frame_times([[f.pts_seconds for f in image.frames] for image in video]) for video in videos])


def _as_images(message: dict[str, Any]) -> dict[str, Any]:
    """The message with every visual item as a bare image item, which all families' templates know."""
    content = message["content"]
    if isinstance(content, str):
        return message
    return {**message, "content": [{"type": "image"} if item["type"] in VISUAL else item for item in content]}


def _media(conversation: Iterable[dict[str, Any]], kind: str) -> list[Any]:
    """Videos or images named in a conversation's items, under any of the keys that transformers knows."""
    items = [i for m in conversation if not isinstance(m["content"], str) for i in m["content"] if i["type"] == kind]
    found = [next((item[key] for key in (kind, "path", "url") if key in item), None) for item in items]
    return [item for item in found if item is not None]


def _or_none(media: list[list[Any]]) -> list[list[Any]] | None:
    return media if any(media) else None
