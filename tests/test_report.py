"""`dynimg report`: what stands in which column, read back from the markdown that it prints."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynimg_plugin import cli
from dynimg_plugin.evaluation.judging import summarise
from dynimg_plugin.evaluation.judging.protocols import JudgeRequest
from dynimg_plugin.evaluation.judging.reading import Verdict, failure
from dynimg_plugin.evaluation.judging.saved import JUDGEMENT, Judgement, beside
from dynimg_plugin.evaluation.record import RECORD, RunRecord, TaskRecord
from dynimg_plugin.evaluation.reporting.markdown import table
from dynimg_plugin.evaluation.reporting.runs import collect
from dynimg_plugin.evaluation.samples import Sample

JUDGE = {"model": "qwen", "prompts": {"qa": "abc"}, "date": "2026-01-02", "served_by": ["qwen3"]}
PAPER = ["paper: DynImg", "paper: PLLaVA-7B"]


def msvd(**fields) -> TaskRecord:
    scores = {"accuracy": 50.0, "judge_failed": 0.0, "exact_match": 25.0, "score": 3.25}
    known = {"expected": 13157, "split": "test", "prompts": "pllava", "judge": JUDGE, "judge_failed": 0.0}
    known |= {"scores": scores, "questions": 13157, "intervals": {"accuracy": (40.0, 60.0)}}
    return TaskRecord(**{**known, **fields})


def save(folder: Path, tasks: dict[str, TaskRecord], date: str = "20260102_030405", **fields) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    known = {"model": "llava_dynimg", "checkpoint": "base", "dynimg": {"num_images": 4, "fusion": "canvas"}}
    RunRecord(**{"date": date, "tasks": tasks, **known, **fields}).save(folder / f"{date}{RECORD}")
    return folder


def save_samples(folder: Path, name: str, samples: list[Sample]) -> str:
    lines = [json.dumps({"answered": sample.to_dict()}) for sample in samples]
    (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    return name


def save_judgement(folder: Path, samples: str, model: str, verdicts: list[Verdict]) -> None:
    requests = [JudgeRequest("qa", "q", "a", "p", video=f"v{i}") for i in range(len(verdicts))]
    summary = summarise(requests, verdicts)
    Judgement("msvd_qa", samples, {**JUDGE, "model": model}, summary).save(beside(folder / samples, model, JUDGEMENT))


def report(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, ["report", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def read(text: str, number: int = 0) -> list[dict[str, str]]:
    """A table of the report as dicts by its head; a task's name is repeated on every row."""
    lines = [line for line in text.split("\n\n")[number].splitlines() if line.startswith("|")]
    rows = [dict(zip(cells(lines[0]), cells(line), strict=True)) for line in lines[2:]]
    for before, row in itertools.pairwise(rows):
        row["task"] = row.get("task") or before.get("task", "")
    return rows


def row(text: str, task: str, metric: str) -> dict[str, str]:
    return next(one for one in read(text) if (one["task"], one["metric"]) == (task, metric))


def test_two_runs_stand_beside_the_papers_figures_in_columns_of_their_own(tmp_path):
    first = save(tmp_path / "a", {"msvd_qa": msvd()})
    second = save(tmp_path / "b", {"msvd_qa": msvd(scores={"accuracy": 60.0, "score": 3.5, "exact_match": 30.0})})
    text = report(first, second)
    found = row(text, "msvd_qa", "accuracy")
    assert [found["A"], found["B"]] == ["50.0 [40.0, 60.0]", "60.0 [40.0, 60.0]"]
    assert [found[name] for name in PAPER] == ["78.6", "76.6"]
    assert list(found) == ["task", "metric", "A", "B", *PAPER]
    assert row(text, "msvd_qa", "score")["A"] == "3.25"
    assert [row(text, "msvd_qa", "exact_match")[name] for name in ("A", *PAPER)] == ["25.0", "", ""]
    assert row(text, "msvd_qa", "judge_failed")["B"] == "0.0%"
    assert [one["metric"] for one in read(text)][:4] == ["accuracy", "score", "exact_match", "judge_failed"]
    assert row(text, "msvd_qa", "split")["A"] == "test"
    setup = {one[""]: (one["A"], one["B"]) for one in read(text, 1)}
    assert setup["results"] == (str(first), str(second))
    assert setup["judge"] == ("qwen", "qwen")
    assert setup["judged"] == ("2026-01-02", "2026-01-02")
    assert "quoted as reported" in text
    assert "do not compare" not in text


def test_every_line_of_a_table_is_equally_long(tmp_path):
    for block in report(save(tmp_path, {"msvd_qa": msvd()})).split("\n\n")[:2]:
        assert len({len(line) for line in block.strip().splitlines()}) == 1
    assert table(["a|b"], [["1"], ["22222"]]).splitlines() == ["| a\\|b  |", "|-------|", "| 1     |", "| 22222 |"]


def test_a_task_whose_file_keeps_no_samples_has_no_intervals(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"doc_id": 0, "accuracy": {"score": 100.0, "clip": "a"}}\n', "utf-8")
    task = TaskRecord(scores={"accuracy": 50.0}, questions=2, samples="s.jsonl")
    assert row(report(save(tmp_path, {"motion_qa_mc": task})), "motion_qa_mc", "accuracy")["A"] == "50.0"


def test_a_damaged_file_of_samples_is_named(tmp_path):
    (tmp_path / "s.jsonl").write_text('wered": {"score": 100.0}}\n', "utf-8")
    with pytest.raises(ValueError, match=r"s\.jsonl, line 1: no answer of one of the six benchmarks"):
        collect([save(tmp_path, {"msvd_qa": msvd(samples="s.jsonl", scores={"answered": 100.0})})])


def test_intervals_of_judge_free_metrics_come_from_the_saved_answers(tmp_path):
    marks = [0.0, 0.0, 100.0, 100.0, 100.0, 0.0]
    samples = [Sample(f"v{i}", marks={"exact_match": mark}) for i, mark in enumerate(marks)]
    name = save_samples(tmp_path, "s.jsonl", samples)
    text = report(
        save(tmp_path, {"msvd_qa": msvd(samples=name, scores={"exact_match": 50.0, "answered": 100.0}, judge=None)})
    )
    low, high = json.loads(row(text, "msvd_qa", "exact_match")["A"].removeprefix("50.0 "))
    assert 0 <= low < 50 < high <= 100


def test_what_is_not_there_is_a_dash_and_what_was_not_run_is_blank(tmp_path):
    first = save(tmp_path / "a", {"msvd_qa": msvd(scores={"accuracy": None}, intervals={})})
    second = save(tmp_path / "b", {"tgif_qa": msvd()})
    text = report(first, second)
    found = row(text, "msvd_qa", "accuracy")
    assert (found["A"], found["B"]) == ("-", "")
    assert row(text, "tgif_qa", "accuracy")["A"] == ""


def test_partial_runs_unreadable_videos_and_failed_judges_are_marked(tmp_path):
    task = msvd(questions=8, unreadable={"v1": "gone", "v2": "gone"}, unanswered=5, judge_failed=0.25)
    text = report(save(tmp_path, {"msvd_qa": task}))
    assert row(text, "msvd_qa", "questions")["A"] == "8 of 13157 (part)"
    assert row(text, "msvd_qa", "unreadable videos")["A"] == "2 (questions: 5)"
    assert row(text, "msvd_qa", "judge_failed")["A"] == "25.0% (!)"
    assert row(text, "msvd_qa", "accuracy")["A"] == "50.0 [40.0, 60.0] (!)"
    assert row(text, "msvd_qa", "exact_match")["A"] == "25.0"
    assert "(!) A: requests to the judge without a verdict: msvd_qa 25.0%; judge again." in text
    assert "(part): not all questions" in text


@pytest.mark.parametrize(
    "other",
    [{**JUDGE, "model": "gpt"}, {**JUDGE, "prompts": {"qa": "xyz"}}, {**JUDGE, "served_by": ["qwen3-new"]}],
)
def test_runs_under_different_judges_are_said_not_to_compare(tmp_path, other):
    first = save(tmp_path / "a", {"msvd_qa": msvd()})
    second = save(tmp_path / "b", {"msvd_qa": msvd(judge=other)})
    assert "A, B were not all judged by the same judge: their judged figures do not compare" in report(first, second)


def test_a_judgement_made_later_is_a_column_or_replaces_that_of_the_same_judge(tmp_path):
    name = save_samples(tmp_path, "s.jsonl", [Sample("v1", marks={"exact_match": 25.0})])
    save(tmp_path, {"msvd_qa": msvd(samples=name)})
    save_judgement(tmp_path, name, "gpt", [Verdict(True, 5.0), Verdict(True, 4.0), failure("down")])
    text = report(tmp_path)
    accuracy, failed = row(text, "msvd_qa", "accuracy"), row(text, "msvd_qa", "judge_failed")
    assert [accuracy["A"], accuracy["B"]] == ["50.0 [40.0, 60.0]", "100.0 [100.0, 100.0] (!)"]
    assert [failed["A"], failed["B"]] == ["0.0%", "33.3% (!)"]
    assert row(text, "msvd_qa", "exact_match")["B"] == "25.0"
    save_judgement(tmp_path, name, "qwen", [Verdict(False, 0.0)])
    text = report(tmp_path)
    assert {row(text, "msvd_qa", "accuracy")[column] for column in "AB"} == {"0.0", "100.0 [100.0, 100.0] (!)"}


def test_answers_judged_only_later_are_one_column(tmp_path):
    name = save_samples(tmp_path, "s.jsonl", [Sample("v1", marks={"exact_match": 25.0})])
    unjudged = msvd(samples=name, judge=None, judge_failed=None, scores={"exact_match": 25.0}, intervals={})
    save(tmp_path, {"msvd_qa": unjudged})
    assert "accuracy" not in {one["metric"] for one in read(report(tmp_path))}
    save_judgement(tmp_path, name, "gpt", [Verdict(True, 5.0), Verdict(False, 1.0)])
    found = row(report(tmp_path), "msvd_qa", "accuracy")
    assert list(found) == ["task", "metric", "A", *PAPER]
    assert found["A"].startswith("50.0 [")


def test_tasks_run_apart_are_one_column_the_newest_wins_and_other_options_are_another(tmp_path):
    save(tmp_path / "x", {"msvd_qa": msvd()}, "20260101_000000")
    save(tmp_path / "x", {"tgif_qa": msvd()}, "20260102_000000")
    save(tmp_path / "y", {"msvd_qa": msvd(scores={"accuracy": 70.0}, intervals={})}, "20260103_000000")
    other = {"num_images": 1, "fusion": "after"}
    save(tmp_path / "x", {"msvd_qa": msvd()}, "20260104_000000", dynimg=other)
    text = report(tmp_path)
    found = row(text, "msvd_qa", "accuracy")
    assert [found["A"], found["B"]] == ["70.0", "50.0 [40.0, 60.0]"]
    assert row(text, "tgif_qa", "accuracy")["B"] == ""
    options = next(one for one in read(text, 1) if one[""] == "DynImg options")
    assert (options["A"], options["B"]) == ("the defaults", "num_images=1 fusion=after")


def test_an_accuracy_that_needs_no_judge_stays_beside_judged_tasks(tmp_path):
    motion = TaskRecord({"accuracy": 33.0}, 240)
    text = report(save(tmp_path, {"motion_qa_mc": motion, "msvd_qa": msvd()}))
    assert row(text, "motion_qa_mc", "accuracy")["A"] == "33.0"
    assert next(one["task"] for one in read(text)) == "msvd_qa"  # the paper's tasks first


def test_mvbench_shows_its_tasks_on_demand_and_those_that_the_paper_names(tmp_path):
    names = ("accuracy_micro", "accuracy_moving_count", "accuracy_scene_transition", "accuracy_macro")
    save(tmp_path, {"dynimg_mvbench": TaskRecord(dict.fromkeys(names, 40.0), 4000, expected=4000)})
    text = report(tmp_path)
    assert [one["metric"] for one in read(text)][:3] == ["accuracy_macro", "accuracy_micro", "accuracy_moving_count"]
    assert "scene_transition" not in text
    assert "scene_transition" in report(tmp_path, "--all")
    assert row(text, "dynimg_mvbench", "accuracy_moving_count")["paper: DynImg"] == "57"
    assert text.count("derived: PLLaVA-7B") == 1


def test_what_was_measured_is_told(tmp_path):
    seconds = {"decode": 0.07, "compose": 0.01, "vision": None}
    measured = {"tokens_per_video": 576, "iframe_share": 0.625, "seconds_per_video": seconds}
    text = report(save(tmp_path, {"msvd_qa": msvd()}, measured=measured, versions={"torch": "2.11"}))
    setup = {one[""]: one["A"] for one in read(text, 1)}
    assert setup["tokens per video"] == "576"
    assert setup["I-frames used"] == "62%"
    assert setup["s per video, decode"] == "0.070"
    assert "s per video, vision" not in setup
    assert "- Versions: torch 2.11." in text


def test_versions_that_differ_are_rows_and_the_others_a_note(tmp_path):
    first = save(tmp_path / "a", {"msvd_qa": msvd()}, versions={"torch": "2.11", "av": "15"})
    second = save(tmp_path / "b", {"msvd_qa": msvd()}, versions={"torch": "2.12", "av": "15"})
    text = report(first, second)
    torch = next(one for one in read(text, 1) if one[""] == "torch")
    assert (torch["A"], torch["B"]) == ("2.11", "2.12")
    assert "- Versions: av 15." in text


def test_markdown_and_json_are_written_on_demand(tmp_path):
    save(tmp_path / "run", {"msvd_qa": msvd()})
    text = report(tmp_path / "run", "-o", tmp_path / "new" / "r.md", "--json", tmp_path / "r.json")
    written = (tmp_path / "new" / "r.md").read_text("utf-8")
    assert written.strip() in text
    runs = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert runs[0]["folder"] == str(tmp_path / "run")
    assert runs[0]["tasks"]["msvd_qa"]["scores"] == {"exact_match": 25.0, "accuracy": 50.0, "score": 3.25}
    assert runs[0]["tasks"]["msvd_qa"]["judge"] == JUDGE
    assert runs[0]["run"]["checkpoint"] == "base"


def test_folders_without_a_record_and_too_many_runs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no .*_dynimg_record\.json; give the --output_path"):
        report(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        report(tmp_path / "nowhere")
    folder = save(tmp_path / "a", {"msvd_qa": msvd()})
    with pytest.raises(ValueError, match="27 runs do not fit side by side; at most 26"):
        report(*[folder] * 27)
