"""dynimg-motion-tiny: the trained checkpoints that ship load as any other, are small and answer what they promise."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from dynimg_plugin import demo
from dynimg_plugin.demo import ARMS, MOTION_TINY, answer, arm_accuracies, run, table
from dynimg_plugin.eval_tasks.motion_qa.dataset import clip_path, rows
from dynimg_plugin.eval_tasks.motion_qa.questions import open_prompt
from dynimg_plugin.loading import load
from dynimg_plugin.patching import describe_dynimg

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def models():
    return {arm: load(MOTION_TINY / arm) for arm in ARMS}


@pytest.fixture(scope="module")
def figures(models):
    return {arm: arm_accuracies(*models[arm], limit=120) for arm in ARMS}


def test_every_arm_loads_with_its_own_config(models):
    configs = {arm: processor.config for arm, (_, processor) in models.items()}
    assert [(c.fusion, c.rope_4d) for c in configs.values()] == [("none", False), ("canvas", False), ("canvas", True)]
    assert {c.tokens_per_video for c in configs.values()} == {256}
    norms = describe_dynimg(models["dynimg_4d_rope"][0]).theta_norms
    assert set(norms) == {"t", "h", "w"}
    assert min(norms.values()) > 0.01


def test_it_is_small_and_complete():
    weights = list(MOTION_TINY.rglob("*.safetensors"))
    assert len(weights) == len(ARMS)
    assert sum(path.stat().st_size for path in weights) <= 5e6
    assert not [path for path in MOTION_TINY.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    assert (MOTION_TINY / "README.md").is_file()


def test_its_tokenizer_keeps_any_text(models):
    tokenizer = models["dynimg"][1].tokenizer
    for text in ("What does the dog do, naïvely?\n", *(open_prompt(row) for row in rows("held_out", 4))):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert max(len(tokenizer(open_prompt(row)).input_ids) for row in rows("held_out", 40)) <= 4


def test_the_held_out_figures_are_within_their_bounds(figures):
    keys, ours = figures["key_frames"], figures["dynimg"]
    assert min(of["accuracy_key_frames"] for of in figures.values()) >= 85
    assert min(figures[arm]["accuracy_direction_fast"] for arm in ("dynimg", "dynimg_4d_rope")) >= 75
    assert keys["accuracy_direction_fast"] <= 45  # a guess is right in 25, key frames tell nothing
    assert ours["accuracy_between"] >= keys["accuracy_between"] + 15


@torch.no_grad()
def test_theta_was_learned_and_matters(models, tmp_path):
    model, processor = deepcopy(models["dynimg_4d_rope"][0]), models["dynimg_4d_rope"][1]
    row = rows("held_out", 1)[0]
    inputs = processor(text=open_prompt(row), videos=[clip_path(row, tmp_path)], return_tensors="pt")
    trained = model(**inputs).logits
    for name, weight in model.named_parameters():
        if ".theta_" in name:
            weight.zero_()
    assert (model(**inputs).logits - trained).abs().max() > 0.1


def test_a_base_made_otherwise_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples" / "motion_tiny")
    import make

    (tmp_path / make.MADE).write_text('{"clips": 2, "steps": [1, 1, 1], "seed": 0}')
    with pytest.raises(ValueError, match="'seed': 1}; give another folder or remove it"):
        make.make_base(tmp_path, [(0, tmp_path), (1, tmp_path)], steps=(1, 1, 1), seed=1)


def test_transformers_4_is_told_what_the_demo_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "reads_newest_checkpoints", lambda: False)
    with pytest.raises(ValueError, match="saved by transformers 5"):
        run(None, tmp_path, 1)


def test_it_answers_about_a_real_file(models, tmp_path):
    row = next(row for row in rows("held_out", 1) if row["category"] == "direction_slow")
    assert answer(*models["dynimg"], clip_path(row, tmp_path), open_prompt(row)) == row["answer"]


def test_the_script_that_made_it_gives_the_same_weights_twice(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples" / "motion_tiny")
    import make
    from clips import draw_clips, write_conversations

    clips = draw_clips(tmp_path / "clips", 4, workers=1)
    data = write_conversations(tmp_path / "clips" / "train.jsonl", 4, seed=0)
    bases = [make.make_base(tmp_path / name, clips, steps=(3, 2, 2), seed=0) for name in ("one", "two")]
    assert bases[0].joinpath("model.safetensors").read_bytes() == bases[1].joinpath("model.safetensors").read_bytes()
    short = ["max_steps=2", "per_device_train_batch_size=2"]
    arm = make.make_arm("dynimg_4d_rope", bases[0], data, tmp_path / "arm", seed=0, changes=short)
    model, processor = load(arm)
    assert processor.config == load(MOTION_TINY / "dynimg_4d_rope")[1].config
    before = load(bases[0])[0].model.vision_tower.state_dict()
    assert all(torch.equal(before[name], value) for name, value in model.model.vision_tower.state_dict().items())
    assert max(describe_dynimg(model).theta_norms.values()) > 0


def test_the_table_has_a_column_per_arm_and_tells_what_was_not_asked():
    printed = table({"dynimg": {"accuracy_count": 12.5}, "key_frames": {}}).splitlines()
    assert printed[0].split("  ")[-1].strip() == "key frames only"
    count = next(line for line in printed if "count" in line)
    assert count.split()[-2:] == ["12.5", "-"]


def test_the_demo_takes_a_video_of_your_own(one_iframe_clip, tmp_path, capsys):
    run(Path(one_iframe_clip), tmp_path / "out", 5)
    printed = capsys.readouterr().out
    assert str(one_iframe_clip) in printed
    assert "DynImg + 4D RoPE" in printed
    assert "None of the three" not in printed  # which holds for all questions, not for the first five
    assert (tmp_path / "out" / "dynimgs_annotated.png").is_file()
