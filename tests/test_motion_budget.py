"""The study's token budget: which tokens are kept, what they carry, and what is written down."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.motion import budget, learning, regimes, tower
from benchmarks.motion.arms import CONFIGS
from benchmarks.motion.model import build
from benchmarks.motion.records import by_arm, load
from benchmarks.motion.runs import QUICK, Study
from benchmarks.motion.scenes import draw_clips
from dynimg_plugin.budget import spread_cells
from dynimg_plugin.layout import DynImgLayout

CANVAS = CONFIGS["canvas"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    splits = {split: draw_clips(split, 24) for split in ("train", "tuning", "evaluation")}
    return tower.encoded("canvas", splits, 0, "cpu", tmp_path_factory.mktemp("features"), steps=2)


@pytest.fixture(scope="module")
def model():
    return build(replace(CANVAS, rope_4d=True), 0).eval()


def test_a_whole_budget_is_the_studys_own_evaluation(data, model):
    reader = learning.Reader(data["evaluation"], learning.Recipe(replace(CANVAS, rope_4d=True)), "cpu")
    for policy in budget.POLICIES:
        assert budget.accuracy(model, reader, 1.0, policy) == learning.accuracy(model, reader)


@pytest.mark.parametrize("policy", budget.POLICIES)
def test_as_many_tokens_of_every_dynimg_are_kept_as_the_config_says(data, model, policy):
    features = data["evaluation"][0].float()
    kept = budget.kept_tokens(model, features, budget.with_budget(CANVAS, 0.4, policy))
    assert kept.shape == (24, 4 * 6)
    assert torch.equal(kept, kept.sort(-1).values)
    assert (kept.unflatten(1, (4, 6)) // 16 == torch.arange(4)[:, None]).all()
    if policy == "similarity":  # with prompts of one cell each, "motion" may keep the same of all
        assert not torch.equal(kept[0], kept[1])


def test_kept_tokens_keep_their_features_and_coordinates(data, model):
    features = data["evaluation"][0].float()
    config = budget.with_budget(CANVAS, 0.25, "uniform")
    coordinates = regimes.coordinates_of(CANVAS)
    kept = budget.kept_tokens(model, features, config)
    taken, where = regimes.taken(features, CANVAS, kept)
    cells = [16 * image + cell for image in range(4) for cell in spread_cells(DynImgLayout.from_config(config), config)]
    assert torch.equal(taken, features[:, cells])
    assert torch.equal(where, coordinates[cells].expand(24, -1, -1))


def test_kept_tokens_stand_where_they_stood_but_where_they_close_ranks(data, model, monkeypatch):
    seen = []
    monkeypatch.setattr(budget, "read", lambda *given: seen.append(given[3]) or learning.read(*given))
    reader = learning.Reader(data["evaluation"], learning.Recipe(replace(CANVAS, rope_4d=True)), "cpu")
    for closed in (False, True):
        budget.accuracy(model, reader, 0.25, "uniform", closed)
    config = budget.with_budget(CANVAS, 0.25, "uniform")
    cells = [16 * image + cell for image in range(4) for cell in spread_cells(DynImgLayout.from_config(config), config)]
    assert seen[0].tolist() == [[*cells, *[64] * 8]] * 24
    assert seen[1] is None


def test_random_training_draws_how_many_tokens_are_kept():
    generator = torch.Generator().manual_seed(0)
    batches = [regimes.choose("random", 3, 4, 16, generator) for _ in range(60)]
    assert {batch.shape[1] // 4 for batch in batches} >= {1, 2, 15, 16}
    assert all(torch.equal(batch, batch.sort(-1).values) for batch in batches)
    assert all((batch.unflatten(1, (4, -1)) // 16 == torch.arange(4)[:, None]).all() for batch in batches)


def test_a_model_is_written_down_at_every_budget_and_trained_once(tmp_path, monkeypatch):
    study = Study(tmp_path, replace(QUICK, tower_steps=1, steps=2), "cpu", show=lambda line: None)
    monkeypatch.setattr(budget, "ROPES", ("4d",))
    files = budget.run(study, seeds=1)
    arms = by_arm(load(tmp_path / "runs"))
    assert len(arms) == len(files) == 3 * len(budget.KEEPS) * len(budget.POLICIES)
    assert {run[0].visual_tokens for run in arms.values()} == {64, 40, 24, 16, 8}
    assert {(arm.arm, arm.regime) for arm in arms} == {("4d", way) for way in ("full", "closed", "random")}
    record = json.loads(budget.file_of(study, "4d", 0, "random", 0.4, "motion").read_text("utf-8"))
    assert record["options"] == {"keep": 0.4, "keep_policy": "motion"}
    assert record["theta_norms"]["t"] > 0
    monkeypatch.setattr(budget, "learn", None)  # would raise if it were called
    assert budget.run(study, seeds=1) == files
