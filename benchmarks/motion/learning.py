"""Projector and language model learn the questions from frozen features: one visual prefix, a token per question.

visual tokens 0 .. 63 | q0 | q1 | ... | q7        every question sees all visual tokens and itself, at position 64
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from dynimg_plugin import DynImgConfig, describe_dynimg
from dynimg_plugin.training.parts import lora_config, parameter_groups, part_of

from . import last_layer
from .axis_split import AxisSplit, in_clip, install
from .model import FIRST_ANSWER, build, scale_projector
from .questions import QUESTIONS
from .regimes import DRAWN_FOR_A_BATCH, RANDOM, choose, parts_of, places_of, taken
from .tower import Data

BATCH, STEPS, EVERY = 64, 2400, 200  # on the canvas, fast direction rises from 50 to 95 % between steps 1,250 and 2,000
LORA_R = 8
Curve = list[dict[str, Any]]
Show = Callable[[dict[str, Any]], None]  # gets every point of a learning curve
OFFSETS = torch.tensor(list(FIRST_ANSWER.values()))


@dataclass(frozen=True)
class Recipe:
    """Everything of a run but its features."""

    config: DynImgConfig
    regime: str = "fixed"
    seed: int = 0
    learning_rate: float = 8e-3
    theta_lr: float = 1e-2
    axis_split: bool = False
    steps: int = STEPS
    start: Path | None = None  # weights of a checkpoint, which LoRA tunes; None: all from scratch


def questions_after(visual: int) -> tuple[Tensor, Tensor]:
    """Position ids (1, s), and the mask (1, 1, s, s) to be added to attention scores."""
    length = visual + len(QUESTIONS)
    positions = torch.arange(length).clamp(max=visual)
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[visual:, visual:] = torch.eye(len(QUESTIONS), dtype=torch.bool)
    return positions[None], torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]


def read(
    model: Any, features: Tensor, coordinates: Tensor, positions: Tensor | None = None, whole: bool = False
) -> tuple[Tensor, Any]:
    """Logits of the questions' answers, (n, questions, vocabulary), and what the language model returned.

    Args:
        features: (n, visual, c), not projected. coordinates: (n or 1, visual, 3).
        positions: (n or 1, visual + questions), position ids with gaps; None: without.
        whole: compute the last layer for all tokens, and return attentions.
    """
    core, visual = model.model, features.shape[1]
    tokens = torch.arange(len(QUESTIONS), device=features.device)
    asked = core.get_input_embeddings()(tokens).expand(len(features), -1, -1)
    if isinstance(rotary := core.language_model.rotary_emb, AxisSplit):
        rotary.coordinates = coordinates
    in_a_row, mask = (part.to(features.device) for part in questions_after(visual))
    with nullcontext() if whole else last_layer.only(model, len(QUESTIONS)):
        output = core(
            inputs_embeds=torch.cat([core.multi_modal_projector(features), asked], 1),
            attention_mask=mask,
            position_ids=in_a_row if positions is None else positions.to(features.device),
            rope4d_coords=F.pad(coordinates, (0, 0, 0, len(QUESTIONS))).to(features.device),
            use_cache=False,
            output_attentions=whole,
        )
    return model.lm_head(output.last_hidden_state[:, -len(QUESTIONS) :]), output


@dataclass(frozen=True)
class Batch:
    """Visual features (n, tokens, c), coordinates (n or 1, tokens, 3), position ids where they have gaps, and what each
    token shows (see `parts_of`); answers (n, questions) as tokens."""

    features: Tensor
    coordinates: Tensor
    positions: Tensor | None
    parts: Tensor
    answers: Tensor


class Reader:
    """Batches of one regime."""

    def __init__(self, data: Data, recipe: Recipe, device: str) -> None:
        self.features, self.answers = data
        self.recipe, self.device = recipe, device

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        config, features = self.recipe.config, self.features[rows].to(self.device).float()
        tokens = features.shape[1] // config.num_images
        chosen = choose(self.recipe.regime, len(rows), config.num_images, tokens, generator)
        places = places_of(chosen, len(QUESTIONS), features.shape[1]) if self.recipe.regime == RANDOM else None
        features, coordinates = taken(features, config, chosen)
        if self.recipe.axis_split:
            coordinates = in_clip(coordinates, config.num_images)
        answers = (self.answers[rows] + OFFSETS).to(self.device)
        return Batch(features, coordinates, places, parts_of(config, chosen), answers)

    def batches(self) -> Iterator[Batch]:
        """All clips in order, with the same random choices every time."""
        generator = torch.Generator().manual_seed(0)
        for rows in torch.arange(len(self.features)).split(25 if self.recipe.regime in DRAWN_FOR_A_BATCH else 250):
            yield self.batch(rows, generator)


def begin(recipe: Recipe, features: Tensor, device: str) -> Any:
    """The model before its first step: random, its projector fit to the features, or a checkpoint with LoRA in it.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    model = build(recipe.config, recipe.seed, device)
    if recipe.start is not None:
        missing, unknown = model.load_state_dict(torch.load(recipe.start, map_location=device), strict=False)
        if unknown or any(part_of(name) != "theta" for name in missing):
            raise ValueError(f"{recipe.start} does not fit: it lacks {missing} and has {unknown} besides; delete it")
        parts = ["projector", *(["theta"] if recipe.config.rope_4d else [])]
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            get_peft_model(model, lora_config(LORA_R, 2 * LORA_R, 0.0, parts=parts))  # in place
        return model
    model = install(model) if recipe.axis_split else model
    model.model.vision_tower.requires_grad_(False)
    scale_projector(model, features)
    return model


def learn(data: dict[str, Data], recipe: Recipe, device: str, show: Show = lambda point: None) -> tuple[Any, Curve]:
    """The trained model and its learning curve on the tuning split."""
    reader, tuning = Reader(data["train"], recipe, device), Reader(data["tuning"], recipe, device)
    model = begin(recipe, reader.features[:BATCH].to(device).float(), device)
    groups = parameter_groups(model, lr=recipe.learning_rate, theta_lr=recipe.theta_lr, weight_decay=0.01)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, recipe.steps // 20, recipe.steps)
    generator = torch.Generator().manual_seed(recipe.seed)
    curve, losses = [], []
    for step in range(1, recipe.steps + 1):
        rows = torch.randint(len(reader.features), (BATCH,), generator=generator)
        batch = reader.batch(rows, generator)
        logits = read(model, batch.features, batch.coordinates, batch.positions)[0]
        loss = F.cross_entropy(logits.flatten(0, 1), batch.answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % EVERY == 0 or step == recipe.steps:
            curve.append({"step": step, "loss": float(np.mean(losses[-EVERY:])), "accuracy": accuracy(model, tuning)})
            show(curve[-1])
    return model, curve


@torch.no_grad()
def accuracy(model: Any, reader: Reader) -> dict[str, float]:
    """Percent right per question, out of the whole vocabulary; a regime's random choices are the same every time."""
    return percent_right(
        read(model, batch.features, batch.coordinates, batch.positions)[0].argmax(-1) == batch.answers
        for batch in reader.batches()
    )


def percent_right(right: Iterable[Tensor]) -> dict[str, float]:
    """By question, from batches of (n, questions) bool."""
    return dict(zip(QUESTIONS, (100 * torch.cat(list(right)).float().mean(0)).tolist(), strict=True))


@torch.no_grad()
def attention(model: Any, reader: Reader, clips: int = 250) -> dict[str, dict[str, float]]:
    """Shares of each question's attention to key frames, prompts and the rest, mean over layers, heads and clips.

    The clips are one batch: a regime that draws for a batch shows one of its arrangements.
    """
    generator = torch.Generator().manual_seed(0)
    batch = reader.batch(torch.arange(min(clips, len(reader.features))), generator)
    output = read(model, batch.features, batch.coordinates, batch.positions, whole=True)[1]
    weights = torch.stack(output.attentions).mean((0, 2))[:, -len(QUESTIONS) :].cpu()  # (n, questions, s)
    parts = F.pad(batch.parts, (0, len(QUESTIONS)), value=2)[:, None]
    shares = {
        name: (weights * (parts == part)).sum(-1).mean(0).tolist()
        for part, name in enumerate(("key", "prompt", "text"))
    }
    return {q: {name: share[i] for name, share in shares.items()} for i, q in enumerate(QUESTIONS)}


def theta_norms(model: Any) -> dict[str, float] | None:
    """Norms of theta by axis; None with 1D RoPE."""
    return describe_dynimg(model).theta_norms or None
