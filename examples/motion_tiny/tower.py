"""Stage 1: the vision tower and the projector learn what lies in the patches and cells of single DynImgs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from labels import NUM_COVER, NUM_FACTS, NUM_WORDS
from pictures import Pictures
from steps import Descent
from torch import Tensor, nn

from dynimg_plugin import DynImgLayout
from dynimg_plugin.eval_tasks.motion_qa.scenes import COLOURS, SHAPES
from dynimg_plugin.pooling import pool_tokens

BATCH = 8  # images
WEIGHTS = {"cover": 100.0, "words": 30.0, "facts": 60.0}  # most labels are rare: about 1 in 50


def visual_tokens(model: Any, pixels: Tensor, layout: DynImgLayout) -> tuple[Tensor, Tensor]:
    """The tower's features (n, patches, .), and what the language model sees of them (n, cells, .)."""
    patches = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
    return patches, pool_tokens(model.model.multi_modal_projector(patches)[:, None], layout)


class Teacher(nn.Module):
    """Linear readers of patches and pooled tokens; words are read with the language model's own embeddings."""

    def __init__(self, model: Any, tokenizer: Any, cells: int) -> None:
        super().__init__()
        self.model, width = model, model.config.text_config.hidden_size
        names = [*COLOURS, *(f" {shape}" for shape in SHAPES)]
        self.register_buffer("names", torch.tensor([tokenizer(name).input_ids for name in names]).flatten())
        self.cover = nn.Linear(model.config.vision_config.hidden_size, NUM_COVER)
        self.facts, self.cell = nn.Linear(width, NUM_FACTS), nn.Linear(width, cells)
        self.rarity = nn.Parameter(torch.full((NUM_WORDS,), -2.0))

    def loss(self, pictures: Pictures, chosen: np.ndarray) -> Tensor:
        """How badly the labels of some pictures can be read, and each token's own place."""
        patches, tokens = visual_tokens(self.model, pictures.values(chosen), pictures.layout)
        words = 0.5 * tokens @ self.model.model.language_model.embed_tokens.weight[self.names].T + self.rarity
        found = torch.from_numpy(pictures.cells[chosen]).float()
        pairs = {
            "cover": (self.cover(patches), torch.from_numpy(pictures.covers[chosen]).float()),
            "words": (words, found[..., :NUM_WORDS]),
            "facts": (self.facts(tokens), found[..., NUM_WORDS:]),
        }
        places = torch.arange(tokens.shape[1]).repeat(len(chosen))
        wrong = 0.5 * F.cross_entropy(self.cell(tokens).flatten(0, 1), places)
        for name, (read, wanted) in pairs.items():
            wrong = wrong + WEIGHTS[name] * F.binary_cross_entropy_with_logits(read, wanted)
        return wrong

    def trained(self) -> list[nn.Parameter]:
        core = self.model.model
        own = [*self.cover.parameters(), *self.facts.parameters(), *self.cell.parameters(), self.rarity]
        seen = [*core.vision_tower.parameters(), *core.multi_modal_projector.parameters()]
        return [*seen, core.language_model.embed_tokens.weight, *own]


def teach_tower(model: Any, kinds: Sequence[Pictures], *, steps: int, seed: int, lr: float = 4e-3) -> list[float]:
    """Train tower, projector and word embeddings in place, the kinds of pictures in turns.

    Args:
        kinds: of pictures, one batch of each after the other.
        steps: of BATCH pictures each.

    Returns:
        the loss of every step.
    """
    torch.manual_seed(seed)
    teacher = Teacher(model, kinds[0].processor.tokenizer, kinds[0].layout.num_tokens)
    descent, rng = Descent(teacher.trained(), lr, steps, weight_decay=0.01, beta2=0.999), np.random.default_rng(seed)
    for step in range(steps):
        kind = kinds[step % len(kinds)]
        descent.step(teacher.loss(kind, rng.integers(len(kind.pixels), size=BATCH)))
    level(model, kinds[-1])
    return descent.losses


@torch.no_grad()
def level(model: Any, pictures: Pictures) -> None:
    """Scale the projector so that visual tokens have a standard deviation of 1, about what a fresh layer adds.

    They come out of the lessons with 8; then nothing that a layer adds to them counts, and which object moves from one
    picture to the next is not learned.
    """
    last = model.model.multi_modal_projector.linear_2
    spread = visual_tokens(model, pictures.values(np.arange(64) % len(pictures.pixels)), pictures.layout)[1].std()
    for weight in last.parameters():
        weight.div_(spread)
