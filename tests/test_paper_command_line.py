"""`dynimg eval`, and through it lmms-eval's own command line, on all six benchmarks; then judging and reporting."""

from __future__ import annotations

import json

import pytest
from judge_server import JudgeServer
from paper_data import EXPECTED, all_six, hub_copies, says_b
from typer.testing import CliRunner

from dynimg_plugin import cli
from dynimg_plugin.config import DynImgConfig
from dynimg_plugin.evaluation.judging import Judge
from dynimg_plugin.evaluation.judging.saved import find_samples, judge_saved
from dynimg_plugin.evaluation.record import RunRecord, find_records

BUILT_IN = "activitynetqa,mvbench_moving_direction,mvbench_episodic_reasoning,mvbench_action_antonym"


def dynimg(*arguments: object):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def built_in_judge(prompt: str) -> str | None:
    """lmms-eval's own task words its question to the judge otherwise."""
    return "python_dict" if "Predicted Answer:" in prompt else None


@pytest.mark.slow
def test_all_six_and_lmms_evals_own_tasks_on_the_command_line(tmp_path, monkeypatch):
    root, checkpoint = all_six(tmp_path / "data"), says_b(tmp_path / "says_b")
    hub_copies(tmp_path, root, tmp_path / "hf_home")
    monkeypatch.chdir(tmp_path)
    for name, place in {"HF_HOME": "hf_home", "XDG_CACHE_HOME": "cache"}.items():
        monkeypatch.setenv(name, str(tmp_path / place))
    with JudgeServer(fault=built_in_judge) as server:
        monkeypatch.setenv("OPENAI_API_URL", f"{server.url}/chat/completions")
        code, out = dynimg(
            "eval", "--model", checkpoint, "--tasks", f"dynimg_paper,{BUILT_IN}", "--data", root, "--device", "cpu",
            "--judge-url", server.url, "--judge-model", "loopback", "-O", "num_images=1", "--output-path", "out",
        )  # fmt: skip
        asked = server.count
        assert (code, "results ->" in out) == (0, True)
        (path,) = find_records(tmp_path / "out")
        record = RunRecord.load(path)
        check_record(record, root)
        results = json.loads(path.with_name(path.name.replace("dynimg_record", "results")).read_text("utf-8"))
        assert results["results"]["activitynetqa"]["gpt_eval_accuracy,none"] == 100.0
        assert results["results"]["mvbench_moving_direction"]["mvbench_accuracy,none"] == 100.0
        check_later_judgement(tmp_path / "out", record, server)
    # One trial, 3 of lmms-eval's task, 8 aspects; of the 10 open answers two have the same question and answer as
    # another: the judge does not see the video, and is not asked twice.
    assert asked == 1 + 3 + 8 + 10 - 2


def check_record(record: RunRecord, root) -> None:
    for task, expected in EXPECTED.items():
        found = record.tasks[task]
        assert {name: found.scores[name] for name in expected} == pytest.approx(expected), task
        assert (found.prompts, found.source) == ("pllava", str(root))
    assert record.tasks["msvd_qa"].unanswered == 1
    assert "no such file" in record.tasks["msvd_qa"].unreadable["vid3"]
    assert "cannot be read" in record.tasks["msrvtt_qa"].unreadable["video7012.mp4"]
    assert record.tasks["msvd_qa"].judge["model"] == "loopback"
    assert (record.tasks["msvd_qa"].expected, record.tasks["msvd_qa"].questions) == (13157, 4)
    assert record.dynimg == DynImgConfig(num_images=1, grid=27, patch_size=4).to_dict()
    assert record.measured["tokens_per_video"] == 144
    assert 0 < record.measured["iframe_share"] <= 1
    assert all(seconds > 0 for seconds in record.measured["seconds_per_video"].values())
    assert {"dynimg_plugin", "lmms-eval", "torch", "transformers"} <= set(record.versions)


def check_later_judgement(folder, record: RunRecord, server: JudgeServer) -> None:
    """Saved answers, judged anew with nothing known, give the run's own numbers."""
    judge = Judge(server.url, "loopback")
    judged = {one.task: one.summary for path in find_samples([folder]) if (one := judge_saved(path, judge))}
    assert set(judged) == set(EXPECTED) - {"dynimg_mvbench"}
    for task, summary in judged.items():
        assert {name: record.tasks[task].scores[name] for name in summary.metrics} == pytest.approx(summary.metrics)
