"""DynImgCollator: samples of DynImgDataset -> a batch with labels on answers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dynimg_plugin.processing import DynImgProcessor
from dynimg_plugin.session import KEPT
from dynimg_plugin.training.chat import Span, training_text

IGNORED = -100


@dataclass
class DynImgCollator:
    """Tokenises and pads (right) samples of DynImgDataset.

    Text samples mix with videos and with pictures. Videos and pictures do not mix in one batch: they enter the model
    as tensors of different shape. All rows of a batch keep as many visual tokens as its first sample's `keep` says.

    Args:
        processor: of the model that is trained.
        max_length: longest sequence in tokens; the end of longer ones is cut off.
        pad_to_multiple_of: as the tokenizer's.
    """

    processor: DynImgProcessor
    max_length: int | None = None
    pad_to_multiple_of: int | None = None

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """(b) samples -> input_ids, attention_mask, labels (b, s), pixel_values and what else the processor makes."""
        texts, spans = zip(*(training_text(self.processor, sample["messages"]) for sample in samples), strict=True)
        batch = dict(self._inputs(list(texts), samples))
        rows = zip(batch["input_ids"], batch["attention_mask"], texts, spans, strict=True)
        batch["labels"] = torch.stack([self._labels(*row) for row in rows])
        return batch

    def _inputs(self, texts: list[str], samples: list[dict[str, Any]]) -> Any:
        padding: dict[str, Any] = {
            "padding": True,
            "padding_side": "right",
            "truncation": self.max_length is not None,
            "max_length": self.max_length,
            "pad_to_multiple_of": self.pad_to_multiple_of,
            "return_tensors": "pt",
        }
        videos, images = ([sample[kind] for sample in samples] for kind in ("videos", "images"))
        if any(videos) and any(images):
            raise ValueError(
                "videos and pictures came in one batch; set per_device_train_batch_size=1 and raise "
                "gradient_accumulation_steps, or train on one kind"
            )
        if any(images):
            flat = [image for own in images for image in own]
            return self.processor.base(text=texts, images=flat, **padding)
        if not any(videos) or (keep := samples[0].get("keep")) is None:
            return self.processor(text=texts, images=videos if any(videos) else None, **padding)
        processor = self.processor.with_keep(keep)
        kept = torch.full((len(texts),), processor.config.tokens_per_image)
        return {**processor(text=texts, images=videos, **padding), KEPT: kept}

    def _labels(self, ids: Tensor, mask: Tensor, text: str, spans: list[Span]) -> Tensor:
        """The ids of answers, else IGNORED. Visual tokens were multiplied, so the other tokens are matched in order."""
        encoded = self.processor.tokenizer(text, return_offsets_mapping=True)
        placeholder = self.processor.image_token_id
        plain = [
            (token, any(start < to and end > at for at, to in spans))
            for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if token != placeholder
        ]
        places = ((ids != placeholder) & mask.bool()).nonzero().flatten()
        if self.max_length is None:  # a doubled first token may have been taken away; nothing at the end
            plain = plain[len(plain) - len(places) :]
        plain = plain[: len(places)]
        if [token for token, _ in plain] != ids[places].tolist():
            raise ValueError(f"the tokenizer reads {text[:80]!r}... in two ways; labels cannot be placed")
        labels = torch.full_like(ids, IGNORED)
        learned = places[torch.tensor([learn for _, learn in plain], dtype=torch.bool)]
        labels[learned] = ids[learned]
        return labels
