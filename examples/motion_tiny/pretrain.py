"""Stage 1: the vision tower and the projector learn what lies in the patches and cells of single DynImgs.

Everything goes through the patched model's own path: composition, tower, projector, pooling by region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from base import ARMS, DYNIMG
from labels import NUM_COVER, NUM_FACTS, NUM_WORDS, cells, cover
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from dynimg_plugin import DynImgLayout, DynImgProcessor
from dynimg_plugin.eval_tasks.motion_qa.scenes import COLOURS, SHAPES, make_scene
from dynimg_plugin.pooling import pool_tokens

WEIGHTS = {"cover": 100.0, "words": 30.0, "facts": 100.0, "cell": 3.0}  # most labels are rare: about 1 in 50


@dataclass(frozen=True)
class Shown:
    """Single DynImgs with labels: pixels (n, 3, H, W) uint8, covers (n, patches, .), cells (n, cells, .)."""

    layout: DynImgLayout
    pixels: np.ndarray
    covers: np.ndarray
    cells: np.ndarray


def compose_all(processor: DynImgProcessor, clips: Sequence[tuple[int, Path]]) -> Shown:
    """All DynImgs of the clips (seed, file), composed as in evaluation."""
    pictures, covers, facts = [], [], []
    for seed, path in clips:
        scene = make_scene(seed)
        for dynimg in processor.compose(path):
            pictures.append(np.asarray(dynimg.image).transpose(2, 0, 1))
            covers.append(cover(scene, dynimg, processor.layout))
            facts.append(cells(scene, dynimg, processor.layout))
    return Shown(processor.layout, np.stack(pictures), np.stack(covers), np.stack(facts))


class Teacher(nn.Module):
    """Linear readers of patches and pooled tokens; words are read with the language model's own embeddings."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.core, width = model.model, model.config.vision_config.hidden_size
        names = [*COLOURS, *(f" {shape}" for shape in SHAPES)]
        self.register_buffer("names", torch.tensor([tokenizer(name).input_ids for name in names]).flatten())
        self.cover = nn.Linear(width, NUM_COVER)
        self.facts = nn.Linear(model.config.text_config.hidden_size, NUM_FACTS)
        self.cell = nn.Linear(model.config.text_config.hidden_size, DYNIMG.tokens_per_image)
        self.rarity = nn.Parameter(torch.full((NUM_WORDS,), -2.0))

    def forward(self, pixels: Tensor, layout: DynImgLayout) -> dict[str, Tensor]:
        patches = self.core.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
        tokens = pool_tokens(self.core.multi_modal_projector(patches)[:, None], layout)
        words = 0.5 * tokens @ self.core.language_model.embed_tokens.weight[self.names].T + self.rarity
        return {"cover": self.cover(patches), "words": words, "facts": self.facts(tokens), "cell": self.cell(tokens)}

    def trained(self) -> list[nn.Parameter]:
        tower = [*self.core.vision_tower.parameters(), *self.core.multi_modal_projector.parameters()]
        own = [*self.cover.parameters(), *self.facts.parameters(), *self.cell.parameters(), self.rarity]
        return [*tower, self.core.language_model.embed_tokens.weight, *own]


def pretrain(
    model: Any, processor: Any, clips: Sequence[tuple[int, Path]], *, steps: int, seed: int, lr: float = 4e-3
) -> list[float]:
    """Train tower, projector and word embeddings in place: every third batch full key frames, else DynImgs.

    Args:
        processor: the model's own (not yet a DynImgProcessor).
        clips: (seed, file) of each clip.
        steps: of 16 images each.

    Returns:
        the loss of every step.
    """
    kinds = [DynImgProcessor(processor, ARMS[arm]) for arm in ("key_frames", "dynimg", "dynimg")]
    images = [compose_all(kind, clips) for kind in kinds[:2]]
    torch.manual_seed(seed)
    teacher = Teacher(model, processor.tokenizer)
    optimizer = torch.optim.AdamW(teacher.trained(), lr=lr, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, steps)
    rng, losses = np.random.default_rng(seed), []
    for step in range(steps):
        kind = min(step % 3, 1)
        chosen = rng.integers(len(images[kind].pixels), size=16)
        loss = _loss(teacher, kinds[kind], images[kind], chosen)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(teacher.trained(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 250 == 249:
            print(f"  step {step + 1}: loss {np.mean(losses[-100:]):.2f}", flush=True)
    return losses


def _loss(teacher: Teacher, processor: DynImgProcessor, shown: Shown, chosen: np.ndarray) -> Tensor:
    image = processor.image_processor
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (image.image_mean, image.image_std))
    pixels = (torch.from_numpy(shown.pixels[chosen]).float() * image.rescale_factor - mean) / std
    read = teacher(pixels, shown.layout)
    found = torch.from_numpy(shown.cells[chosen]).float()
    wanted = {"words": found[..., :NUM_WORDS], "facts": found[..., NUM_WORDS:]}
    wanted["cell"] = torch.eye(DYNIMG.tokens_per_image).expand(len(chosen), -1, -1)
    wanted["cover"] = torch.from_numpy(shown.covers[chosen]).float()
    return sum(
        (WEIGHTS[name] * F.binary_cross_entropy_with_logits(read[name], wanted[name]) for name in WEIGHTS),
        torch.zeros(()),
    )
