"""`dynimg judge` on saved answers: judged later, judged again by another, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from judge_server import JudgeServer
from typer.testing import CliRunner

from dynimg_plugin import cli
from dynimg_plugin.evaluation.judging import JudgeFailed
from dynimg_plugin.evaluation.judging.saved import Judgement, find_judgements
from dynimg_plugin.evaluation.samples import Sample

REPLIES = ("a dog", "the dog", "a cat")
STAMP = "20260102_030405"
DYNIMG = str(Path(sys.executable).with_name("dynimg"))


def open_samples(count: int = 12) -> list[Sample]:
    """Two questions per video; every third answer is wrong, as the loopback judge sees it."""
    samples = []
    for i in range(count):
        asked = {"question": f"What is q{i}?", "answer": "dog", "prediction": REPLIES[i % 3], "video": f"v{i // 2}"}
        marks = {"exact_match": 25.0, "contained": 50.0}
        samples.append(Sample(asked["video"], marks=marks, requests=({"protocol": "qa", **asked},)))
    return samples


def write_samples(folder: Path, task: str, samples: list[Sample]) -> Path:
    """As lmms-eval does with --log_samples."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{STAMP}_samples_{task}.jsonl"
    lines = [json.dumps({"doc_id": i, "target": "dog", "answered": one.to_dict()}) for i, one in enumerate(samples)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with JudgeServer() as running:
        yield running


def judge(server: JudgeServer, *arguments: object, model: str = "m") -> str:
    """What it prints; raises what the command raises."""
    given = ["judge", *arguments, "--judge-url", server.url, "--judge-model", model, "--retries", 0, "--timeout", 1]
    result = CliRunner().invoke(cli.app, [str(argument) for argument in given])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def judgement(folder: Path, samples: Path, model: str = "m") -> Judgement:
    return next(one for one in find_judgements(folder, [samples.name]) if one.judge["model"] == model)


def test_saved_answers_are_judged_and_every_verdict_is_kept(server, tmp_path):
    path = write_samples(tmp_path / "run", "msvd_qa", open_samples())
    out = judge(server, path)
    assert "msvd_qa, judged by m" in out
    assert "requests sent: 12" in out
    assert "accuracy       66.7 [" in out
    assert "judge_failed   0 of 12 (0.0%)" in out
    assert "exact_match    25.0 (no judge)" in out
    found = judgement(path.parent, path)
    assert found.task == "msvd_qa"
    assert found.summary.metrics == {"accuracy": pytest.approx(200 / 3), "score": pytest.approx(11 / 3)}
    verdicts = [json.loads(line) for line in next(path.parent.glob("*.verdicts.jsonl")).read_text("utf-8").splitlines()]
    assert [one["correct"] for one in verdicts] == [True, True, False] * 4
    assert verdicts[2]["prediction"] == "a cat"
    assert verdicts[2]["reply"] == '{"pred": "no", "score": 1}'


def test_judging_again_asks_nothing_and_another_judge_is_kept_apart(server, tmp_path):
    path = write_samples(tmp_path / "run", "msvd_qa", open_samples())
    judge(server, path)
    assert "requests sent: 0" in judge(server, path)
    assert server.count == 12
    server.fault = {"q0?": '{"pred": "no", "score": 0}'}
    judge(server, path, model="another")
    assert server.count == 24
    assert judgement(path.parent, path).summary.metrics["accuracy"] == pytest.approx(200 / 3)
    assert judgement(path.parent, path, "another").summary.metrics["accuracy"] == pytest.approx(700 / 12)
    judge(server, path, "--cache", tmp_path / "new")
    assert server.count == 36


def test_a_folder_is_judged_whole_but_for_what_needs_no_judge(server, tmp_path):
    folder = tmp_path / "out" / "model"
    write_samples(folder, "msvd_qa", open_samples(3))
    write_samples(folder, "dynimg_mvbench", [Sample("v", category="x", marks={"accuracy_micro": 100.0})])
    (folder / f"{STAMP}_samples_other.jsonl").write_text('{"doc_id": 0, "acc": 1}\n', "utf-8")
    out = judge(server, tmp_path / "out")
    assert f"{STAMP}_samples_dynimg_mvbench.jsonl: nothing to judge" in out
    assert "other" not in out
    assert server.count == 3
    judge(server, tmp_path / "out")  # the verdicts beside the samples are no samples
    assert server.count == 3


def test_video_chatgpt_gets_both_averages(server, tmp_path):
    common = {"question": "What?", "answer": "dog", "prediction": "a dog", "video": "v"}
    wrong = {**common, "prediction": "a cat"}
    pair = {"protocol": "consistency", "question2": "Which?", "prediction2": "a cat"}
    generic = tuple({"protocol": name, **common} for name in ("correctness", "detail", "context"))
    rows = [generic, ({"protocol": "temporal", **wrong},), ({**common, **pair},)]
    path = write_samples(tmp_path, "dynimg_videochatgpt", [Sample("v", requests=row) for row in [rows[0], *rows]])
    server.fault = {}
    judge(server, path)
    metrics = judgement(tmp_path, path).summary.metrics
    assert [metrics[name] for name in ("correctness", "temporal", "consistency")] == [5.0, 1.0, 1.0]
    assert metrics["aspect_mean"] == pytest.approx((5 + 5 + 5 + 1 + 1) / 5)
    assert metrics["per_judgement"] == pytest.approx((6 * 5 + 1 + 1) / 8)


@pytest.mark.parametrize("fault", ["http_500", "prose", "http_401"])
def test_too_many_failures_end_in_an_error_after_the_numbers_are_told(server, tmp_path, fault):
    path = write_samples(tmp_path / "run", "msvd_qa", open_samples())
    server.fault = {"q3?": fault}
    with pytest.raises(JudgeFailed, match=r"judge_failed: \d+ of 12 requests have no verdict, more than 1%"):
        judge(server, path, "--concurrency", 1)
    failed = judgement(path.parent, path).summary
    assert failed.failed == (9 if fault == "http_401" else 1)  # a refused key ends the asking
    assert failed.metrics["accuracy"] == pytest.approx(200 / 3 if fault == "http_401" else 700 / 11)
    server.fault = None
    assert f"requests sent: {failed.failed}" in judge(server, path)
    assert judgement(path.parent, path).summary.failed == 0


def test_the_command_exits_with_an_error_and_prints_the_free_numbers_when_the_judge_is_down(tmp_path):
    path = write_samples(tmp_path / "run", "msvd_qa", open_samples())
    command = [DYNIMG, "judge", str(path), "--judge-url", "http://127.0.0.1:9", "--judge-model", "m", "--retries", "0"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert "judge_failed   12 of 12 (100.0%)" in done.stdout
    assert "accuracy       -" in done.stdout
    assert "exact_match    25.0 (no judge)" in done.stdout
    assert "12 of 12 requests have no verdict" in done.stderr
    assert "Traceback" not in done.stderr


def test_killed_while_judging_the_rerun_asks_only_for_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    path = write_samples(tmp_path / "run", "msvd_qa", open_samples(60))
    with JudgeServer(delay=0.05) as server:
        command = [DYNIMG, "judge", str(path), "--judge-url", server.url, "--judge-model", "m", "--concurrency", "2"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while server.count < 21:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.2)
        before = server.count
        assert before < 50
        assert not list(path.parent.glob("*.judgement.json"))
        server.delay = 0.0
        out = judge(server, path)
        asked = Counter(one["messages"][1]["content"] for one in server.requests)
        assert len(asked) == 60
        assert server.count - 60 <= 2  # those that were under way
        assert f"requests sent: {server.count - before}" in out
        resumed = judgement(path.parent, path)
        judge(server, path, "--cache", tmp_path / "undisturbed")
        assert judgement(path.parent, path).summary == resumed.summary


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"doc_id": 0}\n', r"line 1: no answer of one of the six benchmarks.*--log_samples"),
        ("{oops\n", "line 1"),
        ('{"answered": {"video": "v", "requests": [{"protocol": "qa"}]}}\n', "request to the judge does not fit"),
    ],
)
def test_a_file_without_answers_is_refused(server, tmp_path, content, message):
    path = tmp_path / "x_samples_y.jsonl"
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=message):
        judge(server, path)


def test_nothing_to_judge_says_where_samples_come_from(server, tmp_path):
    with pytest.raises(FileNotFoundError, match="--log_samples"):
        judge(server, tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        judge(server, tmp_path / "nowhere")


def test_a_broken_judgement_is_named(tmp_path):
    (tmp_path / "a.judgement.json").write_text('{"format_version": 99}', "utf-8")
    with pytest.raises(ValueError, match=r"a\.judgement\.json is no judgement \(format_version is 99"):
        find_judgements(tmp_path, ["a"])
