"""Each arm's own vision tower: pretrained on single DynImgs to see what lies in every cell, then frozen.

A cell's labels: which things have their centre in the part of its frame that the cell shows, and where in the frame.
Tokens are pooled as the arm pools them, so that all arms are taught the same: a frame's cells see a part each, and
where a prompt has one cell, that sees the whole frame.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from .arms import CONFIGS, attention_of, frame_numbers, layout_of, paint
from .files import write
from .model import WIDTH, build
from .scenes import KINDS, SIDE, Clips, render

STEPS, CLIPS_A_STEP, POOL, RATE = 1500, 16, 3000, 2e-3
Data = tuple[Tensor, Tensor]  # features (n, tokens, c) fp16, answers (n, questions)


def labels(clips: Clips, arm: str) -> tuple[Tensor, Tensor]:
    """Per token: is each kind of thing there, (n, tokens, kinds), and where, (n, tokens, kinds, 2) from -1 to 1."""
    layout, numbers = layout_of(arm), frame_numbers(arm)
    shape = (len(clips), len(numbers), layout.pooled, layout.pooled, KINDS)
    there, where = np.zeros(shape, np.float32), np.zeros((*shape, 2), np.float32)
    rows = np.arange(len(clips))[:, None]
    for index, region in enumerate(layout.regions):
        at = clips.places[:, numbers[:, index]] / SIDE  # (n, images, things, 2)
        for thing in range(at.shape[2]):
            y, x = at[:, :, thing, 0], at[:, :, thing, 1]
            n, image = np.nonzero(~np.isnan(y))
            row = region.cells.y + np.floor(y[n, image] * region.cells.h).astype(int)
            column = region.cells.x + np.floor(x[n, image] * region.cells.w).astype(int)
            cell = (n, image, row, column, clips.kinds[rows[n, 0], thing])
            there[cell], where[cell] = 1, 2 * at[n, image, thing] - 1
    tokens = len(numbers) * layout.num_tokens
    return (
        torch.from_numpy(there).reshape(len(clips), tokens, KINDS),
        torch.from_numpy(where).reshape(len(clips), tokens, KINDS, 2),
    )


def encode(model: Any, arm: str, pixels: Tensor) -> Tensor:
    """Pooled tower features, not projected: (n, images * canvases, 3, H, W) uint8 -> (n, tokens, c)."""
    core = model.model
    with attention_of(arm, core.vision_tower):
        return torch.stack(list(core.get_image_features(pixels / 127.5 - 1).pooler_output))


def pretrain(arm: str, clips: Clips, seed: int, device: str, steps: int = STEPS) -> tuple[Any, float]:
    """A model whose tower has learned, its projector left out; and the last steps' mean loss."""
    model = build(CONFIGS[arm], seed, device)
    model.model.multi_modal_projector = nn.Identity()
    clips = clips.part(slice(POOL))
    pixels = torch.cat([paint(render(clips.part(slice(i, i + 250))), arm) for i in range(0, len(clips), 250)])
    there, where = labels(clips, arm)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = nn.Linear(WIDTH, 3 * KINDS).to(device)
    parameters = [*model.model.vision_tower.parameters(), *head.parameters()]
    parameters += list(getattr(model.model, "prompt_slots", nn.Identity()).parameters())
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(clips), (min(CLIPS_A_STEP, len(clips)),), generator=generator)
        seen, place = head(encode(model, arm, pixels[rows].to(device))).split([KINDS, 2 * KINDS], -1)
        present, at = there[rows].to(device), where[rows].to(device)
        wrong = (place.unflatten(-1, (KINDS, 2)) - at).square().sum(-1)
        loss = 10 * F.binary_cross_entropy_with_logits(seen, present) + (wrong * present).sum() / present.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return model.eval(), float(np.mean(losses[-100:]))


@torch.no_grad()
def features(model: Any, arm: str, clips: Clips, device: str) -> Tensor:
    """(n, tokens, c) of the frozen tower."""
    parts = [clips.part(slice(i, i + 250)) for i in range(0, len(clips), 250)]
    return torch.cat([encode(model, arm, paint(render(part), arm).to(device)).cpu() for part in parts])


def encoded(arm: str, splits: dict[str, Clips], seed: int, device: str, folder: Path, steps: int) -> dict[str, Data]:
    """Features and answers by split, every channel with mean 0 and deviation 1 on the train split; kept on disk."""
    file = folder / f"{arm}-{seed}.pt"
    wanted = {"steps": steps, **{split: len(clips) for split, clips in splits.items()}}
    if there := _kept(file, wanted):
        return there
    model, loss = pretrain(arm, splits["train"], seed, device, steps)
    found = {split: features(model, arm, clips, device) for split, clips in splits.items()}
    mean, deviation = found["train"].mean((0, 1)), found["train"].std((0, 1))
    data = {
        split: (((found[split] - mean) / deviation).half(), torch.from_numpy(clips.answers))
        for split, clips in splits.items()
    }
    if there := _kept(file, wanted):  # another process was quicker: one tower for all of a seed's runs
        return there
    write(file, partial(torch.save, {"wanted": wanted, "loss": loss, "data": data}))
    return data


def _kept(file: Path, wanted: dict[str, int]) -> dict[str, Data] | None:
    if file.is_file() and (kept := torch.load(file))["wanted"] == wanted:
        return kept["data"]
    return None
