"""The miniature study's report: statistics, claims, and what is written from made-up runs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from benchmarks.motion import budget_report, claims, plots, report, tables
from benchmarks.motion.comparisons import AFTERWARDS, PAIRS, Difference, compare, holm, paired, t_interval
from benchmarks.motion.questions import GROUPS, QUESTIONS
from benchmarks.motion.records import ALL, CURVE, Record, RecordError, by_arm, in_order, load, score

ROOT = Path(__file__).parents[1]
SEEDS = range(5)
WOBBLE = (0.0, 0.4, -0.3, 0.2, -0.1)  # of the seeds, points
NAMED = {pair.name: pair for pair in PAIRS}


def made_up(experiment: str, arm: str, seed: int, accuracy: float, regime: str = "fixed", **other) -> dict:
    asked = dict.fromkeys(QUESTIONS, accuracy)
    return {
        "version": 1,
        "experiment": experiment,
        "arm": arm,
        "regime": regime,
        "seed": seed,
        "options": {},
        "visual_tokens": 64,
        "steps": 400,
        "learning_rate": 2e-3,
        "tuned": 3,
        "accuracy": asked,
        "curve": [{"step": n, "loss": 1.0, "accuracy": dict.fromkeys(QUESTIONS, accuracy / 2)} for n in (200, 400)]
        if experiment == "rope"
        else [],
        "theta_norms": {"t": 0.1, "h": 0.2, "w": 0.3} if arm == "4d" else None,
        "attention": {"when": {"key": 0.5, "prompt": 0.3, "text": 0.2}} if arm == "canvas" else None,
        "wall_seconds": 60.0,
        "cpu_seconds": 30.0,
        "device": "cpu",
        "torch": "2.11.0",
        **other,
    }


def study() -> list[dict]:
    """Every kind of experiment; `tokens`, DynImgs 16 and all of LoRA were not run, seed 4 of `none` neither."""
    levels = {
        "none": 60,
        "after": 70,
        "canvas": 80,
        "canvas_apart": 80,
        "frames_16": 65,
        "image_grid": 66,
        "axis_split": 80,
    }
    runs = [
        made_up("fusion", arm, seed, level + WOBBLE[seed] * (arm == "canvas"))
        for arm, level in levels.items()
        for seed in SEEDS
    ]
    runs = [run for run in runs if (run["arm"], run["seed"]) != ("none", 4)]
    for regime, gain in (("fixed", 0.0), ("shuffled", 10.0)):
        runs += [made_up("rope", "1d", seed, 80, regime) for seed in SEEDS]
        runs += [made_up("rope", "4d", seed, 80 + gain + WOBBLE[seed], regime) for seed in SEEDS]
    for count, level in {"1": 60, "2": 70, "4": 80, "6": 82, "12": 70}.items():
        runs += [made_up("frames", count, seed, level + WOBBLE[seed] * (count == "4")) for seed in SEEDS]
    runs += [
        made_up("dynimgs", count, seed, 80 + WOBBLE[seed] * (count == "4")) for count in ("1", "4") for seed in SEEDS
    ]
    for keep, tokens in {1.0: 64, 0.4: 26, 0.1: 6}.items():
        for rope, slope in {"1d": 20, "4d": 1}.items():
            options = {"keep": keep, "keep_policy": "motion"}
            other = {"regime": "full", "options": options, "visual_tokens": tokens}
            runs += [made_up("budget", rope, seed, 80 - slope * (1 - keep), **other) for seed in range(3)]
    return runs


def store(runs: list[dict], folder):
    folder.mkdir(parents=True)
    for number, run in enumerate(runs):
        (folder / f"{number:03}.json").write_text(json.dumps(run), "utf-8")
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    store(study(), folder / "runs")
    return report.write(folder / "runs", folder)


@pytest.fixture(scope="module")
def arms(written):
    return by_arm(load(written.parent / "runs"))


def rendered(runs, timings=None) -> str:
    arms = by_arm(load(runs))
    compared = report.compared(arms)
    return report.render(arms, compared, list(report.figures(arms, compared)), report.read_timings(timings))


# statistics


def test_t_interval_is_the_one_of_the_book():
    # Student's own sleep data (1908): extra hours of the second drug over the first, ten patients
    sleep = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert t_interval(sleep) == pytest.approx((0.7001, 2.4599, 0.002833), abs=5e-5)
    # by hand: mean 3, s = 1.5811, t(4) = 2.7764: half width 1.9632
    low, high, _ = t_interval([1, 2, 3, 4, 5])
    assert (low, high) == pytest.approx((1.0368, 4.9632), abs=1e-4)


def test_an_interval_needs_two_seeds_and_no_spread_is_a_point():
    assert t_interval([3.0]) == (None, None, None)
    assert t_interval([2.0, 2.0, 2.0]) == (2.0, 2.0, 0.0)
    assert t_interval([0.0, 0.0]) == (0.0, 0.0, 1.0)


def test_holm():
    # sorted 0.005 0.01 0.03 0.04, times 4 3 2 1: 0.02 0.03 0.06 0.04, the last raised to 0.06
    assert holm([0.01, 0.04, 0.03, 0.005], 4) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.005], 4) == pytest.approx([0.03, 0.02])  # two more were planned
    assert holm([0.6, 0.7], 2) == [1.0, 1.0]
    assert holm([], 4) == []


def test_pairs_are_differences_of_the_same_seed():
    runs = [made_up("fusion", "canvas", seed, value) for seed, value in {0: 80, 1: 82, 2: 90, 7: 99}.items()]
    runs += [made_up("fusion", "none", seed, value) for seed, value in {2: 80, 1: 80, 0: 79, 5: 1}.items()]
    found = paired(NAMED["canvas - none"], ALL, by_arm([Record(**run) for run in runs]))
    assert dict(found.by_seed) == {0: 1, 1: 2, 2: 10}
    assert found.room == pytest.approx(100 - (80 + 80 + 79) / 3)
    assert found.dropped == (5, 7)
    assert found.mean == pytest.approx(13 / 3)


def test_who_learns_sooner_shows_along_the_curve(arms):
    by_name = {pair.name: found for pair, found in compare(arms).differences.items()}
    gain = by_name["4D - 1D RoPE, shuffled"]
    assert gain[CURVE].mean == pytest.approx(gain[ALL].mean / 2)  # made-up curves run at half the accuracy
    assert CURVE not in by_name["canvas - after"]  # and these have none


def test_how_soon_a_question_was_learned_is_told_by_seed():
    runs = [made_up("rope", "4d", seed, value) for seed, value in {0: 50, 1: 100, 2: 96}.items()]
    runs[2]["curve"][1]["accuracy"] = dict.fromkeys(QUESTIONS, 96.0)
    runs.append(made_up("fusion", "none", 0, 90))  # without a curve
    text = tables.soon(by_arm([Record(**run) for run in runs]), "when", 50)
    assert text.splitlines()[2:] == ["| rope | 4d | fixed | 0 1 2 | not in 400, 200, 400 | -, -, - |"]


def test_what_a_curve_gains_at_its_end():
    run = made_up("rope", "4d", 0, 80)
    run["curve"] = [
        {"step": step, "loss": 1.0, "accuracy": dict.fromkeys(QUESTIONS, right)}
        for step, right in ((200, 10.0), (800, 70.0), (1000, 90.0), (1200, 72.5))
    ]
    text = tables.soon(by_arm([Record(**{**run, "steps": 1200})]), "when", 50)
    assert text.splitlines()[2:] == ["| rope | 4d | fixed | 0 | 800 | +2.5 |"]


def test_pairs_without_a_common_seed_are_named():
    runs = [made_up("fusion", "canvas", 0, 80), made_up("fusion", "none", 1, 60)]
    arms = by_arm([Record(**run) for run in runs])
    assert "- canvas - none: no seed was run on both sides" in report.render(arms, compare(arms), [])


def test_groups_are_means_over_their_questions():
    accuracy = {name: float(place) for place, name in enumerate(QUESTIONS)}
    assert score(accuracy, ALL) == 3.5
    expected = sum(accuracy[name] for name in GROUPS["position"]) / 2
    assert score(accuracy, "position") == expected
    del accuracy[GROUPS["position"][0]]
    assert score(accuracy, "position") is None
    assert score(accuracy, "key") is not None


def test_holm_counts_the_planned_pairs_run_or_not_and_none_else(arms):
    compared = compare(arms)
    tested = {pair: compared.differences[pair][ALL].p for pair in PAIRS if ALL in compared.differences[pair]}
    assert compared.adjusted.keys() == tested.keys()
    assert len(tested) < len(PAIRS) == 34
    pair, least = min(tested.items(), key=lambda item: item[1])
    assert compared.adjusted[pair] == pytest.approx(min(1, 34 * least))
    assert compared.differences.keys() == {*PAIRS, *AFTERWARDS}


# claims


def difference(low: float, high: float, seeds: int = 5, room: float = 30.0) -> Difference:
    values = dict.fromkeys(range(seeds), (low + high) / 2)
    return Difference(PAIRS[0], ALL, values, (), (low + high) / 2, room, low, high, 0.01)


@pytest.mark.parametrize(
    ("found", "adjusted", "outcome"),
    [
        (difference(1.0, 3.0), 0.01, claims.HELD),
        (difference(1.0, 3.0), 0.2, claims.UNDECIDED),  # alone it would be, among so many pairs it is not
        (difference(-3.0, -1.0), 0.01, claims.NOT_HELD),
        (difference(-0.4, 0.6), 1.0, claims.NOT_HELD),  # a point is excluded
        (difference(-0.4, 0.6, room=1.2), 1.0, claims.NOT_HELD),
        (difference(-0.4, 0.6, room=0.9), 1.0, claims.UNDECIDED),  # at a ceiling a point could not have been gained
        (difference(1.0, 1.8, room=1.9), 0.01, claims.HELD),
        (difference(-0.6, 1.4), 1.0, claims.UNDECIDED),
        (difference(0.1, 0.5), 0.2, claims.UNDECIDED),  # small, but 0 is excluded too
        (difference(1.0, 3.0, seeds=2), 0.01, claims.UNDECIDED),
        (None, None, claims.UNDECIDED),
    ],
)
def test_outcomes_of_one_pair(found, adjusted, outcome):
    assert claims.judge(found, adjusted, gain=2.0) == outcome


def test_a_gain_of_the_paper_below_one_point_must_be_excluded_itself():
    assert claims.judge(difference(-0.4, 0.6), 1.0, gain=0.5) == claims.UNDECIDED


def test_a_claim_holds_with_all_pairs_and_falls_with_one():
    first, second = PAIRS[:2]
    assert claims.together({first: claims.HELD, second: claims.HELD}) == claims.HELD
    assert claims.together({first: claims.HELD, second: claims.UNDECIDED}) == claims.UNDECIDED
    assert claims.together({first: claims.UNDECIDED, second: claims.NOT_HELD}) == claims.NOT_HELD


def test_all_three_outcomes_come_from_runs(arms):
    verdicts = {finding.claim.text[:5]: finding.verdict for finding in claims.findings(compare(arms))}
    assert verdicts == {
        "A < B": claims.HELD,
        "B < C": claims.HELD,
        "C < D": claims.NOT_HELD,  # no difference, and the interval is narrow
        "4 pro": claims.NOT_HELD,  # six are better
        "4 Dyn": claims.NOT_HELD,
    }
    fewer = {arm: dict(list(runs.items())[:2]) for arm, runs in arms.items()}
    assert {finding.verdict for finding in claims.findings(compare(fewer))} == {claims.UNDECIDED}


# the report


def test_the_report_names_what_is_missing_and_what_was_dropped(written):
    text = written.read_text("utf-8")
    missing = text[text.index("## Missing") : text.index("## Differences")]
    for arm in ("fusion tokens, fixed", "dynimgs 16, fixed", "theta shared, shuffled", "rope 4d, order"):
        assert f"- `{arm}`: no run" in missing
    assert "canvas" not in missing
    assert "canvas - none: seeds 4 were run on one side only" in text
    assert "| canvas - tokens |" not in text


def test_the_report_holds_every_run_and_its_cost(written):
    text = written.read_text("utf-8")
    rows = text[text.index("## Every run") :].strip().splitlines()[4:]
    assert len(rows) == len(study())
    assert "| fusion | canvas | fixed | 1 | 80.4 | 80.4 |" in text
    assert "| fusion | canvas | fixed | - | 400 | 0.002 | 3 | 5 | 30 ± 0 | 60 ± 0 | cpu |" in text
    assert "| rope | 4d | fixed | 5 | 0.100 ± 0.000 | 0.200 ± 0.000 | 0.300 ± 0.000 |" in text


def test_the_head_counts_models_and_sums_their_time(tmp_path):
    theta = {"t": 0.1, "h": 0.2, "w": 0.4}
    runs = [made_up("rope", "4d", 0, 80), made_up("theta", "shared", 0, 80)]  # one work under two names
    runs = [{**run, "theta_norms": theta, "curve": []} for run in runs]
    for keep in (1.0, 0.4):  # of one model, each with its part of the time
        for regime in ("full", "closed"):
            options = {"keep": keep, "keep_policy": "motion"}
            runs.append(made_up("budget", "4d", 0, 80, regime, options=options, cpu_seconds=45.0))
    text = rendered(store(runs, tmp_path / "runs"))
    assert "6 runs of 6 arms, from 2 different models, seeds 0, on cpu, torch 2.11.0: 4 CPU minutes, 5 minutes" in text


def test_the_same_runs_give_the_same_bytes(written, tmp_path):
    shutil.copytree(written.parent / "runs", tmp_path / "runs")
    (tmp_path / "runs" / "000.json").rename(tmp_path / "runs" / "zzz.json")  # names of files do not count
    assert rendered(tmp_path / "runs").encode() == written.read_bytes()


def test_every_plot_of_the_report_is_there_and_shows_something(written):
    named = {part.split(")")[0] for part in written.read_text("utf-8").split("](")[1:]}
    assert named == {path.name for path in written.parent.glob("*.png")}
    assert {"effects.png", "curves_rope.png", "values_frames.png", "theta.png", "attention.png", "budget.png"} <= named
    for name in named:
        picture = Image.open(written.parent / name).convert("L")
        assert picture.width > 300
        assert len(set(picture.resize((200, 100)).get_flattened_data())) > 20


def test_plots_differ_where_the_runs_do(written, tmp_path):
    other = study()
    for run in other:
        if run["arm"] in ("4d", "canvas"):
            run["accuracy"] = {name: value - 9 for name, value in run["accuracy"].items()}
            run["theta_norms"] = {"t": 0.9, "h": 0.2, "w": 0.3}
            run["curve"] = [{**point, "accuracy": run["accuracy"]} for point in run["curve"]]
    arms = by_arm(load(store(other, tmp_path / "runs")))
    drawn = report.figures(arms, report.compared(arms))
    for name in ("effects.png", "curves_rope.png", "theta.png", "budget.png"):
        plots.save(drawn[name](), tmp_path / name)
        before, after = (Image.open(folder / name).convert("RGB") for folder in (written.parent, tmp_path))
        assert before.size != after.size or ImageChops.difference(before, after).getbbox(), name


# the token budget


def test_the_smallest_budget_that_loses_at_most_one_point(arms):
    found = budget_report.lines(arms)
    assert list(found) == [("1d", "full", "motion"), ("4d", "full", "motion")]
    assert budget_report.loss(found["4d", "full", "motion"], 0.1) == pytest.approx(0.9)
    assert budget_report.smallest(found["4d", "full", "motion"]) == 0.1
    assert budget_report.smallest(found["1d", "full", "motion"]) == 1.0
    del found["4d", "full", "motion"][1.0]
    assert budget_report.smallest(found["4d", "full", "motion"]) is None


def test_what_4d_rope_adds_at_a_budget_is_paired_by_seed(written):
    gain = "+17.1 [+17.1, +17.1]"  # 79.1 against 62 at keep=0.1
    assert f"| full, keep 0.1, motion | {gain} | {gain} |" in written.read_text("utf-8")


def test_a_budget_after_a_loss_does_not_count():
    line = {
        keep: {0: Record(**made_up("budget", "4d", 0, level))} for keep, level in {1.0: 80, 0.4: 70, 0.1: 80}.items()
    }
    assert budget_report.smallest(line) == 1.0


def test_timings_of_the_budget_become_a_table(written, tmp_path):
    path = tmp_path / "timings.json"
    row = {"arm": "keep=0.4", "visual_tokens": 232, "prefill_to_576": 0.456, "prefill_to_2304": 0.1}
    rows = [{**row, "kv_to_576": 0.41, "kv_to_2304": 0.11}]
    path.write_text(json.dumps({"layers": 24, "device": "cpu", "policy": "motion", "rows": rows}), "utf-8")
    assert "| keep=0.4 | 232 | 0.46 | 0.10 | 0.41 | 0.11 |" in rendered(written.parent / "runs", path)
    path.write_text("[]", "utf-8")
    with pytest.raises(RecordError, match=r"token_budget\.py --json"):
        report.read_timings(path)
    path.write_text(json.dumps({"layers": 24, "device": "cpu", "policy": "motion", "rows": [row]}), "utf-8")
    with pytest.raises(RecordError, match=r"token_budget\.py --json"):
        report.read_timings(path)
    with pytest.raises(RecordError, match=r"No such file.*token_budget\.py --json"):
        report.read_timings(tmp_path / "none.json")


# runs that are none


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 1"),
        ({"experiment": "mixing"}, "experiment is 'mixing'"),
        ({"seed": True}, "seed is True"),
        ({"accuracy": {"when": 101.0}}, "accuracy is"),
        ({"accuracy": {"weather": 50.0}}, "accuracy is"),
        ({"accuracy": {"when": math.nan}}, "accuracy is"),
        ({"curve": [{"step": 1}]}, "curve is"),
        ({"theta_norms": {"t": 0.1}}, "theta_norms is"),
        ({"comment": "mine"}, r"has \['comment'\] too much"),
        ({"experiment": "budget"}, "options keep and keep_policy"),
    ],
)
def test_a_foreign_or_malformed_run_is_named(tmp_path, change, message):
    folder = store([made_up("fusion", "canvas", 0, 80) | change], tmp_path / "runs")
    with pytest.raises(RecordError, match=message) as caught:
        load(folder)
    assert "000.json" in str(caught.value)


def test_what_is_no_json_or_lacks_a_field_is_named(tmp_path):
    folder = store([], tmp_path / "runs")
    with pytest.raises(RecordError, match="no runs"):
        load(folder)
    (folder / "half.json").write_text('{"version": 1, "exp', "utf-8")
    with pytest.raises(RecordError, match=r"half\.json is not JSON"):
        load(folder)
    (folder / "half.json").write_text('{"version": 1}', "utf-8")
    with pytest.raises(RecordError, match=r"lacks .*'accuracy'"):
        load(folder)


def test_runs_that_do_not_fit_together_are_refused(tmp_path):
    run = made_up("fusion", "canvas", 0, 80)
    with pytest.raises(RecordError, match=r"000\.json and .*001\.json are the same run"):
        load(store([run, run], tmp_path / "twice"))
    with pytest.raises(RecordError, match="their steps differ: 400 and 40"):
        load(store([run, made_up("fusion", "canvas", 1, 80, steps=40)], tmp_path / "quick"))


def test_arms_that_are_numbers_are_sorted_by_value():
    assert sorted(["none", "12", "4", "1", "0.5"], key=in_order) == ["0.5", "1", "4", "12", "none"]


def test_the_lowest_panel_of_every_column_has_its_numbers():
    figure, axes = plots.panels(6)
    axes[0].plot([0, 100], [0, 1])
    figure.draw_without_rendering()
    shown = [any(label.get_visible() and label.get_text() for label in axis.get_xticklabels()) for axis in axes]
    assert shown == [False, False, True, True, True, True]


def test_the_report_in_docs_is_what_its_runs_give():
    study = ROOT / "docs" / "study"
    arms = by_arm(load(study / "runs"))
    timings = report.read_timings(ROOT / "benchmarks" / "results" / "token_budget_2cores.json")
    found = report.compared(arms)
    drawn = list(report.figures(arms, found))
    assert (study / "report.md").read_text("utf-8") == report.render(arms, found, drawn, timings)
    assert sorted(drawn) == sorted(file.name for file in study.glob("*.png"))
