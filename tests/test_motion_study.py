"""The miniature study computes what it says: exact properties of its arms and regimes, on random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from benchmarks.motion.arms import CONFIGS, GRID, PATCH, frame_numbers, paint, timing_of
from benchmarks.motion.axis_split import in_clip, install
from benchmarks.motion.checks import Outcome, check
from benchmarks.motion.learning import Reader, Recipe, begin, learn, questions_after, read, theta_norms
from benchmarks.motion.model import FIRST_ANSWER, VOCABULARY, build, scale_projector
from benchmarks.motion.plan import PROMPTS, REGIMES
from benchmarks.motion.questions import ANSWERS, GROUPS, QUESTIONS
from benchmarks.motion.regimes import CHOICES, choose, coordinates_of, parts_of, taken
from benchmarks.motion.runs import QUICK, Run, Study, all_runs, matching
from benchmarks.motion.scenes import FOUR_GROUPS, FRAMES, ONE_GROUP, SPLITS, draw_clips, render
from benchmarks.motion.tower import encode, labels
from dynimg_plugin import compose
from dynimg_plugin.config import ThetaScope
from dynimg_plugin.rope import DynImgRotaryEmbedding
from dynimg_plugin.training.parts import part_of

CANVAS = CONFIGS["canvas"]
TOKENS = {"dynimgs_1": 16, "dynimgs_16": 256, **dict.fromkeys(PROMPTS.values(), 144)}
QUIET = {"device": "cpu", "show": lambda line: None}


@pytest.fixture(scope="module")
def clips():
    return draw_clips("train", 6, seed=7)


def clips_of(arm):
    return draw_clips("train", 6, seed=7, timing=timing_of(arm))


@pytest.fixture(scope="module")
def towers():
    return {arm: build(CONFIGS[arm], 0) for arm in CONFIGS}


def encoded(model, arm, pixels):
    with torch.no_grad():
        return encode(model, arm, pixels)


# --- clips


def test_the_same_seed_draws_the_same_clips_and_splits_and_seeds_are_disjoint():
    drawn = [draw_clips(split, 300, seed) for split in SPLITS for seed in range(5)]
    assert np.array_equal(drawn[0].places, draw_clips("train", 300).places, equal_nan=True)
    paths = {tuple(path) for some in drawn for path in some.places[:, 0, :2].reshape(-1, 4)}
    assert len(paths) == 300 * len(drawn)


def test_answers_are_balanced_and_in_range():
    answers = draw_clips("train", 4000).answers
    for column, count in zip(answers.T, ANSWERS.values(), strict=True):
        assert set(column) == set(range(count))
    assert np.bincount(answers[:, QUESTIONS.index("side")]).tolist() == pytest.approx([2000, 1000, 1000], abs=150)


def test_key_frames_never_show_streak_or_flash_and_prompts_show_all_of_them():
    places = draw_clips("train", 500).places
    keys, prompts = frame_numbers("none").ravel(), frame_numbers("canvas")[:, 1:].ravel()
    assert np.isnan(places[:, keys, 2:]).all()
    assert (~np.isnan(places[:, prompts, 2, 0])).sum(1).tolist() == [4] * 500
    assert sorted([*keys, *prompts]) == list(range(FRAMES))


@pytest.mark.parametrize(
    ("number", "streaks", "flashes"),
    [
        (1, [0, 0, 0, 1], [[0, 0], [0, 0], [0, 1], [0, 0]]),
        (2, [1, 1, 0, 1], [[0, 0], [0, 0], [1, 1], [0, 0]]),
        (4, [1, 1, 1, 1], [[1, 1], [1, 1], [1, 1], [1, 1]]),
        (6, [2, 2, 2, 2], [[1, 1], [1, 1], [1, 1], [1, 1]]),
        (12, [4, 4, 4, 4], [[2, 2], [2, 2], [2, 2], [2, 2]]),
    ],
)
def test_how_much_of_streak_and_flash_so_many_prompts_show(number, streaks, flashes):
    key, *prompts = frame_numbers(PROMPTS[number])[0]
    assert np.isin(ONE_GROUP.streak, prompts).sum(-1).tolist() == streaks
    assert np.isin(ONE_GROUP.flash, prompts).sum(-1).tolist() == flashes
    assert key not in ONE_GROUP.streak
    places = sorted((ONE_GROUP.streak == prompts[0]).nonzero()[1])  # of a streak in the first prompt
    assert places == {1: [1], 2: [0, 3], 4: [1], 6: [1], 12: [0]}[number]  # first or last tells no direction
    assert (ONE_GROUP.flash[:, 0] < key).all()
    assert (ONE_GROUP.flash[:, 1] > key).all()


@pytest.mark.parametrize(("arm", "streak", "flash"), [("prompts_1", 1, [0, 1]), ("prompts_2", 2, [1, 1])])
def test_of_20_frames_two_prompts_show_everything_and_one_half_of_the_flashes(arm, streak, flash):
    prompts = frame_numbers(arm)[:, 1:]
    assert np.isin(FOUR_GROUPS.streak, prompts).sum(-1).tolist() == [streak] * 4
    assert np.isin(FOUR_GROUPS.flash, prompts).sum(-1).tolist() == [flash] * 4


@pytest.mark.parametrize(("timing", "firsts"), [(FOUR_GROUPS, [0, 5, 10, 15]), (ONE_GROUP, [0, 3, 5, 9])])
def test_answers_are_what_the_pictures_show(timing, firsts):
    clips = draw_clips("train", 20, seed=7, timing=timing)
    keys = [2, 7, 12, 17] if timing is FOUR_GROUPS else [6]
    answers, shown = dict(zip(QUESTIONS, clips.answers.T, strict=True)), ~np.isnan(clips.places[..., 0])
    for i in range(len(clips)):
        for question, thing in (("direction_slow", 0), ("direction_fast", 2)):
            path = clips.places[i, shown[i, :, thing], thing]
            dy, dx = path[-1] - path[0]
            seen = (0 if dx < 0 else 1) if abs(dx) > abs(dy) else (2 if dy < 0 else 3)
            assert answers[question][i] == seen
        assert np.flatnonzero(shown[i, :, 2])[0] == firsts[answers["when"][i]]
        flash = np.flatnonzero(shown[i, :, 3])
        assert len(flash) == 2 * answers["existence"][i]
        nearest = min(keys, key=lambda key: np.abs(flash - key).sum())
        assert answers["side"][i] == (1 + (flash[0] > nearest) if len(flash) else 0)
        y, x = np.round(clips.places[i, 0, 1]).astype(int)
        colour = [[220, 40, 40], [40, 190, 60], [50, 70, 230], [230, 210, 40], [210, 50, 210], [40, 210, 220]]
        assert render(clips.part(slice(i, i + 1)))[0, 0, y, x].tolist() == colour[answers["static"][i]]


def test_groups_of_questions_cover_all_once():
    assert sorted(GROUPS["key"] + GROUPS["between"]) == sorted(QUESTIONS)
    ends = [FIRST_ANSWER[q] + count for q, count in ANSWERS.items()]
    assert ends[:-1] == list(FIRST_ANSWER.values())[1:]
    assert ends[-1] < VOCABULARY - 2


# --- arms


@pytest.mark.parametrize("arm", [arm for arm in CONFIGS if arm != "image_grid"])
def test_pictures_are_those_that_compose_paints(arm):
    frames = render(clips_of(arm))
    painted = paint(frames, arm)
    for i in range(2):
        images = [image for dynimg in compose(frames[i], CONFIGS[arm]) for image in dynimg.images]
        expected = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        assert torch.equal(painted[i], expected)


def test_an_image_grid_holds_four_whole_frames_on_each_image_in_time_order(clips):
    grid, frames = paint(render(clips), "image_grid"), paint(render(clips), "frames_16")
    halves = torch.nn.functional.interpolate(frames[0].float(), (32, 32), mode="area")
    quarters = grid[0].unflatten(-1, (2, 32)).unflatten(-3, (2, 32)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    assert (quarters.float() - halves).abs().mean() < 3


@pytest.mark.parametrize("arm", CONFIGS)
def test_arms_have_their_number_of_visual_tokens_with_labels_and_coordinates(arm, towers):
    """64 but for 1 and 16 DynImgs in place of 4, which have 16 tokens each, and the one DynImg of 144."""
    tokens, clips = TOKENS.get(arm, 64), clips_of(arm)
    features = encoded(towers[arm], arm, paint(render(clips), arm))
    there, where = labels(clips, arm)
    assert features.shape == (6, tokens, 64)
    assert there.shape == (6, tokens, 9)
    assert where.shape == (6, tokens, 9, 2)
    assert len(coordinates_of(CONFIGS[arm])) == tokens


@pytest.mark.parametrize("arm", CONFIGS)
def test_towers_read_as_many_patches_of_a_clip_as_the_docs_say(arm, towers):
    read = []
    first = towers[arm].model.vision_tower.encoder.layers[0]
    handle = first.register_forward_pre_hook(lambda _, args, kwargs: read.append(args[0].shape), with_kwargs=True)
    encoded(towers[arm], arm, paint(render(clips_of(arm)), arm))
    handle.remove()
    patches = sum(shape[0] * shape[1] for shape in read) / 6
    assert patches == {"after": 320, "tokens": 80, "frames_16": 256, **TOKENS}.get(arm, 64)


def test_labels_name_each_thing_once_in_every_frame_that_shows_it(clips):
    there, where = labels(clips, "canvas")
    cells = there.unflatten(1, (4, GRID, GRID))
    assert (cells[:, :, :3, :, :6].sum((2, 3, 4)) == 2).all()  # two discs in every key frame
    assert (cells[:, :, 3, :, :6].sum(-1) == 2).all()  # and in every prompt
    assert (there[..., 6:8].sum((1, 2)) == 4).all()  # the streak in four frames
    assert where.abs().max() < 1


@pytest.mark.parametrize(("arm", "same"), [("canvas_apart", True), ("canvas", False)])
def test_a_prompt_changes_key_features_only_where_they_attend_to_it(arm, same, clips, towers):
    pixels = paint(render(clips), arm)
    other = pixels.clone()
    other[..., 3 * PATCH :, :] = 255 - other[..., 3 * PATCH :, :]
    before, after = (encoded(towers[arm], arm, x).unflatten(1, (4, GRID, GRID)) for x in (pixels, other))
    assert torch.equal(before[:, :, :3], after[:, :, :3]) == same
    assert not torch.equal(before[:, :, 3], after[:, :, 3])


def test_a_key_frame_changes_no_prompt_features_without_attention(clips, towers):
    pixels = paint(render(clips), "canvas_apart")
    other = pixels.clone()
    other[..., : 3 * PATCH, :] = 0
    before, after = (
        encoded(towers["canvas_apart"], "canvas_apart", x).unflatten(1, (4, 4, 4)) for x in (pixels, other)
    )
    assert torch.equal(before[:, :, 3], after[:, :, 3])


def test_the_mask_is_gone_afterwards(clips, towers):
    pixels = paint(render(clips), "canvas")
    before = encoded(towers["canvas_apart"], "canvas", pixels)
    encoded(towers["canvas_apart"], "canvas_apart", pixels)
    assert torch.equal(encoded(towers["canvas_apart"], "canvas", pixels), before)


# --- regimes and RoPE


@pytest.fixture(scope="module")
def pair():
    """The same random language model with 1D and with 4D RoPE."""
    models = {rope: build(replace(CANVAS, rope_4d=rope == "4d"), 3) for rope in ("1d", "4d")}
    features = torch.randn(5, 64, 64, generator=torch.Generator().manual_seed(0))
    for model in models.values():
        scale_projector(model, features)
    return models, features


def test_every_planned_regime_chooses_tokens_in_one_way():
    assert set(REGIMES) == set(CHOICES)


@pytest.mark.parametrize("regime", [*dict.fromkeys(CHOICES.values()), "gaps"])
def test_4d_rope_is_1d_rope_at_theta_0_bit_for_bit(regime, pair):
    models, features = pair
    positions = None
    if regime == "gaps":
        jumps = torch.randint(0, 41, (72,), generator=torch.Generator().manual_seed(1))
        positions = torch.where(torch.arange(72) % 16 == 0, jumps, 1).cumsum(0)[None]
        positions[:, 64:] = positions[:, 64]
    chosen = choose("fixed" if regime == "gaps" else regime, 5, 4, 16, torch.Generator().manual_seed(2))
    tokens, coordinates = taken(features, CANVAS, chosen)
    plain, ours = (read(models[rope], tokens, coordinates, positions)[0] for rope in ("1d", "4d"))
    assert torch.equal(plain, ours)
    rotary = models["4d"].model.language_model.rotary_emb
    rotary.theta_t.data += 0.3  # and the comparison can fail
    try:
        assert not torch.equal(plain, read(models["4d"], tokens, coordinates, positions)[0])
    finally:
        rotary.theta_t.data.zero_()


@pytest.mark.parametrize("rope", ["1d", "shared", "per_layer", "axis_split"])
def test_the_last_layer_is_the_same_for_the_questions_alone(rope):
    scope = {"theta_scope": rope} if rope in get_args(ThetaScope) else {}
    model = build(replace(CANVAS, rope_4d=bool(scope), **scope), 3)
    coordinates = coordinates_of(CANVAS)
    if rope == "axis_split":
        install(model)
        coordinates = in_clip(coordinates, 4)
    generator = torch.Generator().manual_seed(0)
    rotary = model.model.language_model.rotary_emb
    thetas = rotary.thetas if isinstance(rotary, DynImgRotaryEmbedding) else ()
    for theta in thetas:
        theta.data.normal_(generator=generator)
    features = torch.randn(5, 64, 64, generator=generator)
    core = model.model
    parameters = [*core.multi_modal_projector.parameters(), *core.language_model.layers.parameters(), *thetas]
    found = []
    for whole in (False, True):
        logits = read(model, features, coordinates[None], whole=whole)[0]
        found.append([logits, *torch.autograd.grad(logits.square().mean(), parameters)])
    assert all(torch.allclose(asked, all_of_it, rtol=1e-4, atol=1e-6) for asked, all_of_it in zip(*found, strict=True))


def test_axis_split_turns_each_frequency_with_one_axis_alone():
    rotary = install(build(CANVAS, 0)).model.language_model.rotary_emb
    rotary.coordinates = in_clip(coordinates_of(CANVAS), 4)[None]
    assert sorted(set(rotary.coordinates[0, :, 0].tolist())) == list(range(20))
    x, ignored = torch.empty(0), torch.zeros(1, 72, dtype=torch.long)
    before = rotary(x, ignored)
    for axis, frequencies in enumerate(([0, 1], [2, 3, 4], [5, 6, 7])):
        moved = torch.zeros(3).index_fill(0, torch.tensor(axis), 1.5)
        rotary.coordinates = rotary.coordinates + moved
        after = rotary(x, ignored)
        rotary.coordinates = rotary.coordinates - moved
        for old, new in zip(before, after, strict=True):
            assert new.shape == (1, 72, 16)
            turned = (old != new)[0, :64].any(0).nonzero().flatten()
            assert turned.tolist() == frequencies + [8 + f for f in frequencies]
            assert torch.equal(old[0, 64:], new[0, 64:])


def test_axis_split_at_the_text_positions_is_the_base():
    model = build(CANVAS, 0)
    base = model.model.language_model.rotary_emb
    rotary = install(model).model.language_model.rotary_emb
    rotary.coordinates = torch.arange(64.0)[None, :, None].expand(1, -1, 3)
    positions = torch.cat((torch.arange(64), torch.full((8,), 20)))[None]
    assert all(map(torch.equal, rotary(torch.empty(0), positions), base(torch.empty(0), positions)))


def test_visual_tokens_enter_with_deviation_1(pair):
    models, features = pair
    projected = models["1d"].model.multi_modal_projector(features)
    assert projected.std().item() == pytest.approx(1, abs=1e-3)
    assert projected.mean().item() == pytest.approx(0, abs=1e-3)


def test_regimes_choose_tokens_within_each_dynimg_and_coordinates_go_along():
    features = torch.arange(64.0).expand(7, 64)[..., None]
    coordinates = coordinates_of(CANVAS)
    for regime, count in (("dropped", 10), ("shuffled", 16)):
        chosen = choose(regime, 7, 4, 16, torch.Generator().manual_seed(0))
        parts = chosen.unflatten(1, (4, count))
        assert (parts // 16 == torch.arange(4)[:, None]).all()
        assert all(len(set(part.tolist())) == count for row in parts for part in row)
        assert bool((parts.diff() > 0).all()) == (regime == "dropped")
        assert len({tuple(row.tolist()) for row in chosen}) == 7
        tokens, thw = taken(features, CANVAS, chosen)
        assert torch.equal(tokens[..., 0], chosen.float())
        assert torch.equal(thw, coordinates[chosen])
    assert choose("fixed", 7, 4, 16, torch.Generator()) is None


def images_of(chosen: torch.Tensor) -> torch.Tensor:
    """Which DynImgs come, (rows, DynImgs), where they come whole."""
    assert torch.equal(chosen % 16, torch.arange(16).repeat(chosen.shape[1] // 16).expand(len(chosen), -1))
    return chosen[:, ::16] // 16


def test_order_and_irregular_take_whole_dynimgs():
    generator = torch.Generator().manual_seed(0)
    shown = images_of(choose("order", 50, 4, 16, generator))
    assert torch.equal(shown.sort(-1).values, torch.arange(4).expand(50, -1))
    assert len({tuple(row) for row in shown.tolist()}) > 15
    counts = set()
    for _ in range(20):
        shown = images_of(choose("irregular", 50, 4, 16, generator))
        assert (shown.diff() > 0).all()
        counts.add(shown.shape[1])
    assert counts == {2, 3, 4}


def test_real_time_runs_from_the_first_dynimg_that_is_shown_in_units_of_the_mean_distance():
    timed = replace(CANVAS, rope_4d=True, t_mode="time")
    chosen = (torch.tensor([[3, 0], [1, 2]])[..., None] * 16 + torch.arange(16)).flatten(1)
    t = taken(torch.zeros(2, 64, 1), timed, chosen)[1][..., 0]
    key, rest = t[:, ::16], t[:, 12:16]  # of the first DynImg: key frame 2, prompts 0, 1, 3 and 4 of its five
    unit = 19 / 9  # frames 0 to 19 and ten of them; of DynImgs 1 and 2 frames 5 to 14
    assert torch.allclose(key, torch.tensor([[17 / unit, 2 / unit], [2.0, 7.0]]))
    assert torch.allclose(rest[1], torch.tensor([0.0, 1.0, 3.0, 4.0]))
    slots = taken(torch.zeros(2, 64, 1), CANVAS, chosen)[1][..., 0]
    assert slots[:, 12:16].tolist() == [[-2, -1, 1, 2]] * 2


def test_stills_are_key_frames_of_another_clip_without_coordinates():
    features = torch.arange(3.0)[:, None, None].expand(-1, 64, 1)
    lengths = set()
    for seed in range(12):
        chosen = choose("stills", 3, 4, 16, torch.Generator().manual_seed(seed))
        tokens, thw = taken(features, CANVAS, chosen)
        still = parts_of(CANVAS, chosen)[0] == 2
        lengths.add(int(still.sum()))
        assert (tokens[:, still, 0] == torch.tensor([[2.0], [0.0], [1.0]])).all()
        assert (tokens[:, ~still, 0] == torch.arange(3.0)[:, None]).all()
        assert torch.equal(thw[0, ~still], coordinates_of(CANVAS))
        assert not thw[:, still].any()
    assert lengths <= {0, 12, 24, 36, 48}
    assert len(lengths) > 2


def test_an_unknown_regime_is_refused():
    with pytest.raises(ValueError, match="'sorted' is not known; allowed: fixed, dropped, shuffled, order"):
        choose("sorted", 7, 4, 16, torch.Generator())


def test_questions_see_all_visual_tokens_and_not_one_another(pair):
    models, features = pair
    coordinates = coordinates_of(CANVAS)[None]
    before = read(models["4d"], features, coordinates)[0]
    embeddings = models["4d"].get_input_embeddings().weight
    kept = embeddings.data[2].clone()
    embeddings.data[2] = 1.0
    after = read(models["4d"], features, coordinates)[0]
    embeddings.data[2] = kept
    changed = (before != after).any(-1).any(0)
    assert changed.tolist() == [question == 2 for question in range(8)]
    positions, mask = questions_after(64)
    assert positions[0, 60:].tolist() == [60, 61, 62, 63, *[64] * 8]
    assert (mask[0, 0, 64:, :64] == 0).all()


# --- runs


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = Study(tmp_path_factory.mktemp("study"), QUICK, **QUIET)
    names = ("rope-shuffled-4d-0", "theta_lr-shuffled-0.01-0", "fusion-axis_split-0")
    runs = [run for name in names for run in matching(all_runs(1), name)]
    assert study.run(runs) == 3
    assert study.read(runs.pop())["options"]["rope"] == "axis_split"
    return study, runs


def test_a_run_leaves_the_json_that_the_report_reads(study):
    record = json.loads((study[0].folder / "runs" / "rope-shuffled-4d-0.json").read_text("utf-8"))
    expected = {"version": 1, "experiment": "rope", "arm": "4d", "regime": "shuffled", "seed": 0, "visual_tokens": 64}
    expected |= {"steps": 3, "tuned": 1, "device": "cpu", "torch": torch.__version__}
    assert {name: record[name] for name in expected} == expected
    assert set(record) - set(expected) == {
        *("options", "learning_rate", "accuracy", "curve", "theta_norms", "attention"),
        *("wall_seconds", "cpu_seconds"),
    }
    assert list(record["accuracy"]) == list(QUESTIONS)
    assert [point["step"] for point in record["curve"]] == [3]
    assert set(record["theta_norms"]) == {"t", "h", "w"}
    assert min(record["theta_norms"].values()) > 0
    assert all(sum(shares.values()) == pytest.approx(1, abs=1e-4) for shares in record["attention"].values())


def test_what_is_there_is_not_run_again_and_the_same_work_is_copied(study, monkeypatch):
    study, runs = study
    monkeypatch.setattr("benchmarks.motion.runs.learn", lambda *_: pytest.fail("it was run again"))
    assert study.run(runs) == 0
    study.file(runs[1]).unlink()
    assert study.run(runs[1:], all_runs(1)) == 1  # theta's default rate is the run of 4D RoPE
    first, second = (study.read(run) for run in runs)
    assert {**second, **runs[0].names} == first


def test_the_same_seed_learns_the_same_and_every_seed_and_regime_something_else(study):
    data, recipe = study[0].data("canvas", 0), study[0].recipe(study[1][0], 2e-3)

    def logits(other):
        model, _ = learn(data, other, "cpu")
        return read(model, data["tuning"][0].float(), coordinates_of(CANVAS)[None])[0]

    once = logits(recipe)
    assert torch.equal(logits(recipe), once)
    assert not torch.equal(logits(replace(recipe, seed=1)), once)
    assert not torch.equal(logits(replace(recipe, regime="fixed")), once)


def test_each_learning_rate_is_tried_once_per_tower_and_the_best_run_of_seed_0_is_taken(tmp_path, monkeypatch):
    study = Study(tmp_path, replace(QUICK, rates=(1e-3, 2e-3, 4e-3)), **QUIET)
    learned = []

    def pretend(run: Run, rate: float):
        learned.append((run.name, rate))
        right = dict.fromkeys(QUESTIONS, 50 - abs(rate - 2e-3))
        return {**run.names, "curve": [{"accuracy": right}], "accuracy": right, "wall_seconds": 0, "tuned": 1}

    monkeypatch.setattr(study, "_learned", pretend)
    runs = [run for run in all_runs(2) if run.name in ("rope-dropped-4d-1", "dynimgs-fixed-4-0", "rope-fixed-1d-1")]
    assert study.run(runs) == 3
    tried = [("fusion-canvas-0", rate) for rate in (1e-3, 2e-3, 4e-3)]
    assert learned == [*tried, ("rope-fixed-1d-1", 2e-3), ("rope-dropped-4d-1", 2e-3)]
    assert {study.read(run)["tuned"] for run in runs} == {3}
    split = Run("fusion", "axis_split", "canvas", "fixed", 4, axis_split=True)
    assert split.tuned_on == replace(split, seed=0)


def test_lora_tunes_a_checkpoint_of_plain_frames(study, monkeypatch, tmp_path):
    learned = []
    monkeypatch.setattr("benchmarks.motion.runs.learn", lambda *a: learned.append(a[1]) or learn(*a))
    study, runs = study[0], matching(all_runs(1), "lora-*")
    assert study.run(runs) == 2
    checkpoint = study.folder / "checkpoints" / "plain-0.pt"
    assert [(recipe.regime, recipe.start) for recipe in learned] == [("key", None), *[("fixed", checkpoint)] * 2]
    assert [study.read(run)["options"]["lora_r"] for run in runs] == [8, 8]
    features = study.data("canvas_apart", 0)["tuning"][0].float()
    models = [begin(recipe, features, "cpu") for recipe in learned[1:]]
    for model, trained in zip(models, (["lora", "projector"], ["lora", "projector", "theta"]), strict=True):
        parts = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert sorted(parts) == trained
    first, second = ({n: p for n, p in model.named_parameters() if "lora_A" in n} for model in models)
    assert first
    assert all(torch.equal(first[name], second[name]) for name in first)
    one, two = (read(model, features, coordinates_of(CANVAS)[None])[0] for model in models)
    assert torch.equal(one, two)
    plain = build(CANVAS, 5)
    plain.load_state_dict(torch.load(checkpoint))
    assert torch.allclose(read(plain, features, coordinates_of(CANVAS)[None])[0], one, atol=1e-5)
    torch.save({"another": torch.zeros(1)}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=r"odd.pt does not fit: it lacks .* and has \['another'\] besides"):
        begin(replace(learned[1], start=tmp_path / "odd.pt"), features, "cpu")


def test_key_frames_alone_are_their_cells():
    chosen = choose("key", 3, 4, 16, torch.Generator())
    assert chosen.shape == (3, 48)
    assert not parts_of(CANVAS, chosen).any()


def test_a_folder_holds_one_scale(study):
    with pytest.raises(ValueError, match=r"holds a study with steps 3, here 4; take another --output"):
        Study(study[0].folder, replace(QUICK, steps=4), **QUIET)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="sees no CUDA device; take --device cpu"):
        Study(tmp_path / "new", QUICK, "cuda")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("regime", "mean"), [("irregular", 48), ("stills", 88)])
def test_what_is_drawn_for_a_batch_is_drawn_often_in_evaluation(regime, mean):
    data = torch.zeros(2000, 64, 1), torch.zeros(2000, 8, dtype=torch.long)
    lengths = [batch.features.shape[1] for batch in Reader(data, Recipe(CANVAS, regime), "cpu").batches()]
    assert len(lengths) == 80
    assert sum(lengths) / 80 == pytest.approx(mean, rel=0.1)


def test_1d_rope_has_no_theta_norms(pair):
    assert theta_norms(pair[0]["1d"]) is None


def test_names_are_unique_and_an_unknown_pattern_lists_them():
    runs = list(all_runs(5))
    assert len({run.name for run in runs}) == len(runs)
    assert [run.name for run in runs[:3]] == ["fusion-none-0", "fusion-canvas-0", "fusion-after-0"]
    with pytest.raises(ValueError, match=r"no run is called 'fuson-\*'; .* lines fusion-none, fusion-canvas"):
        matching(iter(runs), "fuson-*")


def test_a_finding_holds_by_its_mean():
    assert Outcome("x", [30.0, 15.0], above=20).holds
    assert not Outcome("x", [30.0, 5.0], above=20).holds
    assert str(Outcome("x", [9.0, 5.0], below=5)) == "NOT HELD x: +7.0 points, wanted < 5 (+9.0, +5.0)"


class MadeUp:
    """A study whose runs have given accuracies."""

    def __init__(self, accuracies: dict[str, float]) -> None:
        self.accuracies, self.made = accuracies, []

    def run(self, runs: list[Run]) -> None:
        self.made += runs

    def read(self, run: Run) -> dict:
        assert run in self.made
        return {"accuracy": dict.fromkeys(QUESTIONS, self.accuracies[run.line])}


GOOD = {"rope-shuffled-4d": 95.0, "rope-shuffled-1d": 50.0, "theta_lr-shuffled-0.0001": 51.0}
GOOD |= {"fusion-canvas": 93.0, "fusion-none": 60.0, "theta_lr-shuffled-1e-05": 49.0}


@pytest.mark.parametrize(
    ("changed", "held"),
    [
        ({}, [True, True, True, True]),
        ({"rope-shuffled-4d": 69.0}, [False, True, True, True]),
        ({"fusion-none": 79.0}, [True, False, True, True]),
        ({"theta_lr-shuffled-0.0001": 56.0}, [True, True, False, True]),
        ({"theta_lr-shuffled-1e-05": 56.0}, [True, True, True, False]),
    ],
)
def test_the_checks_fail_each_for_its_own_reason(changed, held):
    assert [finding.holds for finding in check(MadeUp(GOOD | changed), 2)] == held


def test_one_command_makes_runs_and_writes_them_to_one_file(tmp_path, monkeypatch, capsys):
    from benchmarks.motion.__main__ import main

    options = ["run", "--quick", "--only", "fusion-none-0", "--json", str(tmp_path / "all.json")]
    monkeypatch.setattr("sys.argv", ["benchmarks.motion", *options])
    assert main() == 0
    assert "1/1 fusion-none-0: direction_slow" in capsys.readouterr().out
    assert [run["arm"] for run in json.loads((tmp_path / "all.json").read_text("utf-8"))] == ["none"]


def test_longer_training_is_an_option_and_needs_a_folder_of_its_own(tmp_path, monkeypatch):
    from benchmarks.motion.__main__ import main

    monkeypatch.setattr(Study, "run", lambda *_: 0)
    command = ["benchmarks.motion", "run", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*command, "--steps", "5", "--only", "no such run"])
    with pytest.raises(ValueError, match="no run is called"):
        main()
    monkeypatch.setattr("sys.argv", [*command, "--steps", "7"])
    assert main() == 0
    assert json.loads((tmp_path / "study.json").read_text("utf-8"))["steps"] == 7
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(ValueError, match="take another --output"):
        main()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "'0' is no whole number above 0"),
        (["--seeds", "all"], "'all' is no whole number above 0"),
        (["--device", "gpu"], "choose from auto, cpu, cuda"),
        (["--json", "no/such/folder/file.json"], "there is no folder no/such/folder"),
    ],
)
def test_what_cannot_be_is_said_before_the_hours(monkeypatch, capsys, options, message):
    from benchmarks.motion.__main__ import main

    monkeypatch.setattr("sys.argv", ["benchmarks.motion", "run", *options])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err.replace("'auto', 'cpu', 'cuda'", "auto, cpu, cuda")


def test_a_tower_that_another_process_has_made_meanwhile_is_taken(tmp_path, monkeypatch):
    from benchmarks.motion import tower

    clips = {split: draw_clips(split, 8) for split in SPLITS}
    pretrain = tower.pretrain

    def slowly(*args):
        monkeypatch.setattr(tower, "pretrain", pretrain)
        theirs = tower.encoded("none", clips, 1, "cpu", tmp_path, 1)  # of another seed, under this one's name
        (tmp_path / "none-1.pt").rename(tmp_path / "none-0.pt")
        made.append(theirs["train"][0])
        return pretrain(*args)

    made = []
    monkeypatch.setattr(tower, "pretrain", slowly)
    assert torch.equal(tower.encoded("none", clips, 0, "cpu", tmp_path, 1)["train"][0], made[0])


def test_evaluation_makes_the_same_random_choices_every_time(study):
    data = study[0].data("canvas", 0)
    reader = Reader(data["evaluation"], Recipe(CANVAS, "dropped"), "cpu")
    one, two = (reader.batch(torch.arange(8), torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one.features, two.features)
    assert torch.equal(one.coordinates, two.coordinates)
    assert one.features.shape == (8, 40, 64)
