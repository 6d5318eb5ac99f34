"""Accuracy against kept tokens: the project's own choice of cells on the study's models, trained in two ways.

    full      trained on all tokens, evaluated with fewer: what somebody gets who sets `keep` on a model that is there
    closed    the same model where kept tokens close ranks; elsewhere they keep their positions in the sequence
    random    the number of tokens kept of a DynImg is drawn anew at every step of training, and which ones too

One model per RoPE, way of training and seed is evaluated at every budget. Each of its runs is written down with an
equal part of the time that the model took, so that sums over runs are right. The learning rate is the canvas arm's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from dynimg_plugin import DynImgConfig
from dynimg_plugin.budget import choose_cells, in_row
from dynimg_plugin.config import KeepPolicy
from dynimg_plugin.layout import DynImgLayout

from .files import write_json
from .learning import OFFSETS, Reader, learn, percent_right, read, theta_norms
from .questions import QUESTIONS
from .records import VERSION
from .regimes import RANDOM, places_of, taken
from .runs import Run, Study

Line = tuple[str, float, str]  # full, closed or random; keep; keep_policy
KEEPS = (1.0, 0.6, 0.4, 0.25, 0.1)
POLICIES = get_args(KeepPolicy)
BUDGETS = [(keep, policy) for keep in KEEPS for policy in POLICIES]
ROPES = ("1d", "4d")
CLOSED = "closed"
TRAINED = {"full": "fixed", "random": RANDOM}  # how the model was trained -> the regime of its visual tokens


def run(study: Study, seeds: int) -> list[Path]:
    """Every run of the budget, runs/*.json; models whose runs are all there are not trained again."""
    models = {
        (trained, rope, seed): {line: file_of(study, rope, seed, *line) for line in lines_of(trained)}
        for seed in range(seeds)
        for trained in TRAINED
        for rope in ROPES
    }
    every = [file for files in models.values() for file in files.values()]
    study.announce(every)
    for (trained, rope, seed), files in models.items():
        if not all(file.is_file() for file in files.values()):
            for line, record in records(study, trained, rope, seed):
                write_json(files[line], record)
            study.show(f"budget-{trained}-{rope}-{seed}: {len(files)} runs written")
    return every


def lines_of(trained: str) -> list[Line]:
    """How a model that was trained so is evaluated."""
    ways = [trained, CLOSED] if trained == "full" else [trained]
    return [(way, *budget) for way in ways for budget in BUDGETS]


def file_of(study: Study, rope: str, seed: int, way: str, keep: float, policy: str) -> Path:
    return study.folder / "runs" / f"budget-{way}-{rope}-{policy}-{keep:g}-{seed}.json"


def records(study: Study, trained: str, rope: str, seed: int) -> Iterator[tuple[Line, dict[str, Any]]]:
    """Train one model on the canvas arm's features and evaluate it at every budget."""
    like = Run("budget", rope, "canvas", TRAINED[trained], seed, rope == "4d")
    rate, tuned = study.rate(like)
    data = study.data(like.fusion, seed)
    wall, cpu = time.perf_counter(), time.process_time()
    recipe = study.recipe(like, rate)
    model, curve = learn(data, recipe, study.device)
    reader = Reader(data["evaluation"], recipe, study.device)
    found = {line: accuracy(model, reader, *line[1:], closed=line[0] == CLOSED) for line in lines_of(trained)}
    shared = {
        "version": VERSION,
        **like.names,
        "steps": recipe.steps,
        "learning_rate": rate,
        "tuned": tuned,
        "curve": curve,
        "theta_norms": theta_norms(model),
        "attention": None,
        "wall_seconds": (time.perf_counter() - wall) / len(found),
        "cpu_seconds": (time.process_time() - cpu) / len(found),
        "device": study.device,
        "torch": torch.__version__,
    }
    for (way, keep, policy), right in found.items():
        tokens = with_budget(recipe.config, keep, policy).tokens_per_video
        own = {"options": {"keep": keep, "keep_policy": policy}, "visual_tokens": tokens, "accuracy": right}
        yield (way, keep, policy), {**shared, "regime": way, **own}


def with_budget(config: DynImgConfig, keep: float, policy: str) -> DynImgConfig:
    return replace(config, keep=keep, keep_policy=policy)


@torch.no_grad()
def accuracy(model: Any, reader: Reader, keep: float, policy: str, closed: bool = False) -> dict[str, float]:
    """Percent right per question when the language model sees the cells that the policy keeps of every DynImg.

    Args:
        closed: kept tokens are numbered anew, without gaps.
    """
    right = []
    for rows in torch.arange(len(reader.features)).split(250):
        features = reader.features[rows].to(reader.device).float()
        chosen = kept_tokens(model, features, with_budget(reader.recipe.config, keep, policy))
        places = None if closed else places_of(chosen, len(QUESTIONS), features.shape[1])
        logits = read(model, *taken(features, reader.recipe.config, chosen), places)[0]
        right.append(logits.argmax(-1).cpu() == reader.answers[rows] + OFFSETS)
    return percent_right(right)


def kept_tokens(model: Any, features: torch.Tensor, config: DynImgConfig) -> torch.Tensor:
    """Which of a clip's tokens are kept, (n, kept), chosen by the projected cells as in a patched model."""
    layout = DynImgLayout.from_config(config)
    cells = model.model.multi_modal_projector(features).unflatten(1, (config.num_images, -1)).flatten(0, 1)
    return in_row(choose_cells(cells, layout, config), len(features), layout.num_tokens)
