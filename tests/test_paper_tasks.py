"""The six benchmarks of the paper as lmms-eval tasks, on miniatures of the layouts that people have."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from judge_server import JudgeServer
from lmms_eval.api.model import lmms
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.protocol import ChatMessages
from lmms_eval.tasks import TaskManager
from modelling import sharpen
from paper_data import EXPECTED, all_six, frames, says_b

from dynimg_plugin.evaluation.current import Evaluation, begin
from dynimg_plugin.evaluation.manifest import tasks_path
from dynimg_plugin.evaluation.model import LlavaDynImg
from dynimg_plugin.evaluation.samples import Sample
from dynimg_plugin.evaluation.task_files import task_configs
from dynimg_plugin.tiny import write_tiny
from dynimg_plugin.video.write import write_video

ARGUMENTS = {"device": "cpu", "num_images": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return all_six(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return says_b(tmp_path_factory.mktemp("says_b"))


@pytest.fixture(scope="module")
def random_checkpoint(tmp_path_factory):
    return write_tiny("llava_onevision", tmp_path_factory.mktemp("random"))


def run(model, tasks, **arguments):
    manager = TaskManager(include_path=tasks_path(), include_defaults=False, model_name="llava_dynimg")
    return simple_evaluate(model=model, tasks=tasks.split(","), task_manager=manager, **arguments)


def scores(results, task):
    found = {key.partition(",")[0]: value for key, value in results["results"][task].items() if "_stderr" not in key}
    return {name: value for name, value in found.items() if name not in ("alias", "samples")}


def test_all_six_give_the_scores_counted_by_hand(root, checkpoint, tmp_path):
    with JudgeServer() as server:
        model = LlavaDynImg(
            str(checkpoint), data_root=str(root), judge_url=server.url, judge_model="loopback",
            judge_cache=str(tmp_path), **ARGUMENTS,
        )  # fmt: skip
        results = run(model, "dynimg_paper")
    assert set(EXPECTED) <= set(results["results"])
    for task, expected in EXPECTED.items():
        found = scores(results, task)
        assert {name: found[name] for name in expected} == pytest.approx(expected), task
    errors = results["results"]["dynimg_mvbench"]
    assert errors["accuracy_micro_stderr_clt,none"] > 0
    assert errors["accuracy_macro_stderr_clt,none"] == "N/A"  # that of a plain mean is not its


def test_without_a_judge_the_judged_metrics_are_absent_and_said_to_be(root, checkpoint, caplog):
    results = run(LlavaDynImg(str(checkpoint), data_root=str(root), **ARGUMENTS), "msvd_qa,dynimg_videochatgpt")
    assert set(scores(results, "msvd_qa")) == {"exact_match", "contained", "word_f1", "answered"}
    assert scores(results, "msvd_qa")["exact_match"] == pytest.approx(EXPECTED["msvd_qa"]["exact_match"])
    assert "msvd_qa: not judged (no judge_url)" in caplog.text
    assert "dynimg_videochatgpt: not judged" in caplog.text


def kept(results, task):
    return [Sample.from_dict(sample["answered"]) for sample in results["samples"][task]]


def test_predict_only_asks_no_judge_and_keeps_what_one_needs(root, checkpoint, tmp_path):
    with JudgeServer() as server:
        judge = {"judge_url": server.url, "judge_model": "loopback", "judge_cache": str(tmp_path)}
        model = LlavaDynImg(str(checkpoint), data_root=str(root), **judge, **ARGUMENTS)
        later = run(model, "dynimg_videochatgpt", predict_only=True)
        assert server.count == 0
        now = run(model, "dynimg_videochatgpt")
    assert "correctness" not in scores(later, "dynimg_videochatgpt")
    assert kept(later, "dynimg_videochatgpt") == kept(now, "dynimg_videochatgpt")
    *_, pair = kept(now, "dynimg_videochatgpt")
    assert pair.requests == (
        {
            "protocol": "consistency", "question": "Who?", "question2": "Which one?", "answer": "zebra",
            "prediction": "B", "prediction2": "B", "video": "one",
        },
    )  # fmt: skip


def test_a_dead_judge_leaves_the_other_numbers_and_counts_as_failed(root, checkpoint, caplog, tmp_path):
    with JudgeServer() as server:
        url = server.url
    model = LlavaDynImg(
        str(checkpoint), data_root=str(root), judge_url=url, judge_model="gone", judge_cache=str(tmp_path),
        judge_timeout=2, **ARGUMENTS,
    )  # fmt: skip
    found = scores(run(model, "tgif_qa"), "tgif_qa")
    assert math.isnan(found["accuracy"])
    assert math.isnan(found["score"])
    assert (found["judge_failed"], found["exact_match"]) == (100.0, 50.0)
    assert "judge_failed: 2 of 2 requests have no verdict" in caplog.text


def test_a_missing_and_a_corrupt_video_change_no_other_score(random_checkpoint, root, tmp_path, caplog):
    damaged = tmp_path / "damaged"
    shutil.copytree(root / "GPT_Zero_Shot_QA", damaged)
    videos = damaged / "Activitynet_Zero_Shot_QA" / "all_test"
    (videos / "v_abc.webm").unlink()
    (videos / "v_def.mkv").write_bytes(b"no video")
    found = []
    for place in (root, damaged):
        model = LlavaDynImg(str(random_checkpoint), data_root=str(place), max_new_tokens=8, **ARGUMENTS)
        sharpen(model.model)
        found.append((run(model, "dynimg_activitynetqa,tgif_qa"), model))
    (whole, _), (hurt, model) = found
    assert [sample.unreadable for sample in kept(hurt, "dynimg_activitynetqa")] == [True, True, False]
    assert kept(hurt, "dynimg_activitynetqa")[2] == kept(whole, "dynimg_activitynetqa")[2]
    assert kept(hurt, "tgif_qa") == kept(whole, "tgif_qa")
    assert scores(hurt, "dynimg_activitynetqa")["answered"] == pytest.approx(100 / 3)
    noted = model.evaluation.tasks["dynimg_activitynetqa"]
    assert noted["unanswered"] == 2
    assert "no such file" in noted["unreadable"]["abc"]
    assert "cannot be read as a video" in noted["unreadable"]["def"]
    assert "videos missing: 1" in caplog.text


def test_every_wording_is_answered_apart_and_in_the_words_of_the_variant(random_checkpoint, root):
    said = {}
    for variant in ("pllava", "lmms-eval"):
        model = LlavaDynImg(str(random_checkpoint), data_root=str(root), prompts=variant, max_new_tokens=6, **ARGUMENTS)
        sharpen(model.model)
        asked = model._prompt
        said[variant] = []
        model._prompt = lambda question, asked=asked, kept=said[variant]: kept.append(asked(question)) or kept[-1]
        results = run(model, "tgif_qa,dynimg_videochatgpt")
        alias = results["results"]["tgif_qa"]["alias"]
        assert alias == f"tgif_qa (test, 2 questions, {variant} prompts)"
    *_, pair = kept(results, "dynimg_videochatgpt")
    (request,) = pair.requests
    assert request["prediction"] != request["prediction2"]
    ours, theirs = (next(prompt for prompt in said[name] if "hat is 0" in prompt) for name in ("pllava", "lmms-eval"))
    assert "Question:what is 0\n<|im_end|>\n<|im_start|>assistant\nAnswer: In the video," in ours
    assert ours.endswith("Answer: In the video,")
    assert "What is 0? Answer the question using a single word or phrase.<|im_end|>" in theirs
    assert theirs.endswith("<|im_start|>assistant\n")


def test_a_yaml_of_ones_own_names_root_split_and_part(checkpoint, root, tmp_path):
    template = Path(tasks_path()) / "paper"
    (tmp_path / "mine.yaml").write_text(
        f"include: {template / 'dynimg_mvbench.yaml'}\ntask: my_motion\n"
        f"dataset_kwargs: {{data_root: {root}, tasks: [moving_count, moving_direction]}}\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    model = LlavaDynImg(str(checkpoint), **ARGUMENTS)
    results = simple_evaluate(model=model, tasks=["my_motion"], task_manager=manager)
    found = scores(results, "my_motion")
    assert (found["accuracy_moving_count"], found["accuracy_macro"]) == (50.0, 75.0)
    assert found["accuracy_micro"] == pytest.approx(200 / 3)


class AlwaysB(lmms):
    """The least that a chat model of lmms-eval is."""

    is_simple = False
    loglikelihood = generate_until_multi_round = None

    def generate_until(self, requests):
        for request in requests:
            _, to_messages, _, doc_id, task, split = request.args
            media = ChatMessages(messages=to_messages(self.task_dict[task][split][doc_id])).extract_media()
            assert [len(kind) for kind in media] == [0, 1, 0]  # one video, whatever its ending
            yield "b"


def test_any_chat_model_answers_our_tasks(root, tmp_path):
    begin(Evaluation())
    for name in EXPECTED:
        own = f"include: {Path(tasks_path()) / 'paper' / name}.yaml\ntask: my_{name}\n"
        config = task_configs([name])[name]
        options = {**(config.get("dataset_kwargs") or {}), "data_root": str(root)}
        (tmp_path / f"{name}.yaml").write_text(f"{own}dataset_kwargs: {json.dumps(options)}\n")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(model=AlwaysB(), tasks=[f"my_{name}" for name in EXPECTED], task_manager=manager)
    assert scores(results, "my_tgif_qa")["exact_match"] == 50.0
    assert scores(results, "my_dynimg_mvbench")["accuracy_moving_count"] == 50.0
    assert scores(results, "my_msvd_qa")["answered"] == 100.0  # whether a video can be read is the model's to say


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data_root": "/nowhere"}, "data_root=/nowhere is no folder"),
        ({"judge_url": "http://127.0.0.1:1"}, "give both, or neither"),
        ({"fusionn": "none"}, "answers, data_root, prompts, judge_url"),
    ],
)
def test_wrong_settings_are_refused_before_weights_are_loaded(checkpoint, arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        LlavaDynImg(str(checkpoint), **arguments)


@pytest.mark.parametrize(
    ("prompts", "tasks", "message"),
    [
        ("pllva", "tgif_qa", "prompts='pllva' is not known; allowed: pllava, lmms-eval"),
        (None, "msrvtt_qa", "holds no folder named MSRVTT_Zero_Shot_QA"),
    ],
)
def test_a_task_that_cannot_start_says_why_at_once(checkpoint, root, tmp_path, prompts, tasks, message):
    shutil.copytree(root / "GPT_Zero_Shot_QA" / "TGIF_Zero_Shot_QA", tmp_path / "TGIF_Zero_Shot_QA")
    model = LlavaDynImg(str(checkpoint), data_root=str(tmp_path), prompts=prompts, **ARGUMENTS)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(model, tasks)


def test_answers_are_reused_until_the_checkpoint_changes(root, random_checkpoint, tmp_path):
    checkpoint = shutil.copytree(random_checkpoint, tmp_path / "model")
    common = {"data_root": str(root), "answers": str(tmp_path / "answers"), "max_new_tokens": 4, **ARGUMENTS}
    first = LlavaDynImg(str(checkpoint), **common)
    whole = run(first, "msvd_qa,tgif_qa")
    again = LlavaDynImg(str(checkpoint), batch_size=3, **common)
    assert kept(run(again, "msvd_qa,tgif_qa"), "msvd_qa") == kept(whole, "msvd_qa")
    assert (again.measured.reused, again.measured.questions, again.videos.count) == (
        5,
        0,
        1,
    )  # the missing one is looked for again
    write_video(root / "GPT_Zero_Shot_QA" / "MSVD_Zero_Shot_QA" / "videos" / "vid3.avi", frames(3), codec="mpeg4")
    mended = LlavaDynImg(str(checkpoint), **common)
    try:
        assert not any(sample.unreadable for sample in kept(run(mended, "msvd_qa"), "msvd_qa"))
    finally:
        (root / "GPT_Zero_Shot_QA" / "MSVD_Zero_Shot_QA" / "videos" / "vid3.avi").unlink()
    assert (mended.measured.reused, mended.measured.questions) == (3, 1)
    write_tiny("llava_onevision", checkpoint, seed=1)
    other = LlavaDynImg(str(checkpoint), **common)
    run(other, "tgif_qa")
    assert (other.measured.reused, other.measured.questions) == (0, 2)


KILLED = """
import sys
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from dynimg_plugin.evaluation.manifest import tasks_path
from dynimg_plugin.evaluation.model import LlavaDynImg
checkpoint, root, answers = sys.argv[1:]
model = LlavaDynImg(checkpoint, data_root=root, answers=answers, device="cpu", num_images=1, max_new_tokens=20)
manager = TaskManager(include_path=tasks_path(), include_defaults=False, model_name="llava_dynimg")
simple_evaluate(model=model, tasks=["msvd_qa", "dynimg_videochatgpt"], task_manager=manager)
"""


@pytest.mark.slow
def test_after_sigkill_the_model_is_asked_only_for_what_is_missing(root, random_checkpoint, tmp_path):
    answers = tmp_path / "answers"
    common = {"data_root": str(root), "max_new_tokens": 20, **ARGUMENTS}
    command = [sys.executable, "-c", KILLED, str(random_checkpoint), str(root), str(answers)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while sum(path.read_bytes().count(b"\n") for path in answers.glob("*.jsonl")) < 4:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    (path,) = answers.glob("*.jsonl")
    path.write_bytes(path.read_bytes() + b'{"key": "cut sho')
    resumed = LlavaDynImg(str(random_checkpoint), answers=str(answers), **common)
    found = run(resumed, "msvd_qa,dynimg_videochatgpt")
    undisturbed = LlavaDynImg(str(random_checkpoint), **common)
    wanted = run(undisturbed, "msvd_qa,dynimg_videochatgpt")
    assert resumed.measured.reused >= 3
    assert resumed.measured.reused + resumed.measured.questions == undisturbed.measured.questions
    for task in ("msvd_qa", "dynimg_videochatgpt"):
        assert kept(found, task) == kept(wanted, task)
        assert scores(found, task) == pytest.approx(scores(wanted, task), nan_ok=True)
