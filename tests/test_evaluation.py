"""llava_dynimg inside lmms-eval: in process, on its command line, on two ranks, and the odd things requests carry."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model, list_available_models
from lmms_eval.protocol import ChatMessages
from lmms_eval.tasks import TaskManager
from modelling import sharpen

from dynimg_plugin import VideoError, compose
from dynimg_plugin.eval_tasks.motion_qa import dataset
from dynimg_plugin.evaluation.ahead import ComposedVideos, ahead
from dynimg_plugin.evaluation.manifest import manifests, tasks_path
from dynimg_plugin.evaluation.model import LlavaDynImg, batches
from dynimg_plugin.evaluation.requests import Question, stop_at, to_question
from dynimg_plugin.evaluation.samples import UNREADABLE
from dynimg_plugin.tiny import write_tiny
from dynimg_plugin.video import Clip

MODEL = "llava_dynimg"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny("llava_onevision", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def clips(tmp_path_factory, monkeypatch):
    """motion_qa draws its clips into a folder of the tests."""
    folder = tmp_path_factory.getbasetemp() / "clips"
    monkeypatch.setattr(dataset, "cache_root", lambda: folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


def evaluate(model, limit: int = 4, **arguments):
    manager = TaskManager(include_path=tasks_path(), include_defaults=False, model_name=MODEL)
    return simple_evaluate(model=model, tasks=["motion_qa"], task_manager=manager, limit=limit, **arguments)


def answers(results) -> dict[str, list[str]]:
    return {task: [sample["filtered_resps"][0] for sample in rows] for task, rows in results["samples"].items()}


def test_the_entry_point_registers_model_and_tasks():
    assert MODEL in list_available_models(True)
    assert get_model(MODEL) is get_model("dynimg") is LlavaDynImg
    assert TaskManager.initialize_tasks.adds_dynimg
    assert [manifest.model_id for manifest in manifests()] == [MODEL]
    ours = set(TaskManager(include_path=tasks_path(), include_defaults=False).all_tasks)
    assert {"motion_qa", "motion_qa_mc", "motion_qa_open"} <= ours


def test_registering_twice_wraps_the_task_manager_once():
    before = TaskManager.initialize_tasks
    manifests()
    assert TaskManager.initialize_tasks is before


def test_the_whole_loop_runs_in_process_and_batches_change_no_answer(checkpoint, clips):
    arguments = f"pretrained={checkpoint},device=cpu,max_new_tokens=6"
    singles = evaluate(MODEL, model_args=arguments, batch_size=1)
    batched = evaluate(MODEL, model_args=arguments, batch_size=3)
    assert answers(singles) == answers(batched)
    assert {"motion_qa_mc", "motion_qa_open"} == set(answers(singles))
    sample = singles["samples"]["motion_qa_mc"][0]
    assert sample["token_counts"][0]["input_tokens"] > 576
    assert 0 <= singles["results"]["motion_qa_mc"]["accuracy,none"] <= 100


def test_batches_answer_each_question_with_its_own_answer(checkpoint, clips):
    """On a model whose answers differ from question to question, unlike those of the plain random one."""
    found = []
    for batch_size in (1, 3):
        model = LlavaDynImg(str(checkpoint), device="cpu", num_images=1, max_new_tokens=6, batch_size=batch_size)
        sharpen(model.model)
        found.append(answers(evaluate(model, limit=12)))
    assert found[0] == found[1]
    assert len({answer for task in found[0].values() for answer in task}) >= 8


def test_a_broken_video_is_named_and_the_others_are_answered(checkpoint, clips, monkeypatch, caplog):
    row = dataset.rows("held_out", 1)[0]
    broken = dataset.cache_root() / row["clip"]
    dataset.clip_path(row)
    content = broken.read_bytes()
    broken.write_bytes(b"no video")
    try:
        results = evaluate(LlavaDynImg(str(checkpoint), device="cpu", max_new_tokens=2, batch_size=2), limit=8)
    finally:
        broken.write_bytes(content)
    given = answers(results)["motion_qa_mc"]
    assert given.count(UNREADABLE) == 5
    assert given[:5] == [UNREADABLE] * 5
    assert caplog.text.count(f"video unreadable: {broken}") == 1
    counted = [sample for sample in results["samples"]["motion_qa_mc"] if sample["accuracy"] is not None]
    assert len(counted) == 3


def test_stop_strings_of_a_task_cut_its_answers(checkpoint, clips):
    model = LlavaDynImg(str(checkpoint), device="cpu", num_images=1, max_new_tokens=8)
    sharpen(model.model)
    row = dataset.rows("held_out", 1)[0]
    talk = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": row["question"]}]}]
    whole = next(model._answer([Question(talk, [dataset.clip_path(row)], {})])).text
    cut = next(model._answer([Question(talk, [dataset.clip_path(row)], {"until": [whole[2]]})])).text
    assert cut == whole.split(whole[2])[0].strip()


def test_one_model_instance_serves_two_evaluations(checkpoint, clips):
    model = LlavaDynImg(str(checkpoint), device="cpu", num_images=1, max_new_tokens=3)
    assert answers(evaluate(model, limit=1)) == answers(evaluate(model, limit=1))


def test_every_option_of_the_config_is_a_model_argument(checkpoint):
    model = LlavaDynImg(str(checkpoint), device="cpu", fusion="after", num_prompts=2, rope_4d=False, t_mode="time")
    assert (model.config.fusion, model.config.num_prompts, model.config.rope_4d) == ("after", 2, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_image": 4}, r"unknown DynImg option\(s\) num_image; known: aspect, fast_between, fusion"),
        ({"fusion": "canvass"}, "fusion='canvass' is not known; allowed: canvas, tokens, after, none"),
        ({"adapter": "a", "peft": "b"}, "two names for one argument"),
        ({"device": "cpu", "device_map": "auto"}, "contradict each other"),
    ],
)
def test_wrong_arguments_are_refused(checkpoint, arguments, message):
    with pytest.raises(ValueError, match=message):
        LlavaDynImg(str(checkpoint), **arguments)


def test_a_missing_checkpoint_argument_says_what_to_pass():
    with pytest.raises(ValueError, match="pretrained=<hub id or folder>"):
        LlavaDynImg()


def messages(*items):
    return ChatMessages(messages=[{"role": "user", "content": [*items, {"type": "text", "text": "What?"}]}])


@pytest.mark.parametrize(
    ("kind", "name"), [("video", "a.mp4"), ("audio", "a.webm"), ("image", "a.gif"), ("video", "d")]
)
def test_what_lmms_eval_mislabels_is_a_video(kind, name):
    question = to_question(messages({"type": kind, "url": name}), {})
    assert question.videos == [name]
    assert question.conversation[0]["content"][0] == {"type": "video"}


@pytest.mark.parametrize(
    "item",
    [
        {"type": "image", "url": "a.png"},
        {"type": "audio", "url": "a.wav"},
    ],
)
def test_what_the_model_cannot_take_is_refused(item):
    with pytest.raises(ValueError, match=re.escape(item["url"])):
        to_question(messages(item), {})


def test_clip_bounds_of_a_request_become_a_clip():
    question = to_question(messages({"type": "video", "url": "a.mp4", "start_time": 1.0, "end_time": 2.5}), {})
    assert question.videos == [Clip("a.mp4", 1.0, 2.5)]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_many_questions_about_a_video_compose_it_once(checkpoint, clips, prefetch):
    model = LlavaDynImg(str(checkpoint), device="cpu", num_images=1, max_new_tokens=1, prefetch=prefetch)
    results = evaluate(model, limit=20)
    seen = {sample["doc_id"] // 5 for samples in results["samples"].values() for sample in samples}
    assert len(seen) == 4
    assert model.videos.count <= 2 * len(seen)  # two tasks, one after the other


def test_composed_videos_keep_the_last_ones_and_see_a_changed_file(tmp_path):
    made = []
    videos = ComposedVideos(lambda video: made.append(video) or [video], keep=2, workers=0)
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        Path(path).write_text("x")
    for path in (paths[0], paths[0], paths[1], paths[2], paths[0]):
        assert videos.get(path) == [path]
    assert made == [paths[0], paths[1], paths[2], paths[0]]
    Path(paths[0]).write_text("changed")
    videos.get(paths[0])
    assert videos.count == 5


def test_a_video_that_cannot_be_read_fails_when_it_is_asked_for(tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    videos = ComposedVideos(compose, workers=1)
    videos.expect(str(broken))
    for _ in range(2):
        with pytest.raises(VideoError, match=r"broken\.mp4"):
            videos.get(str(broken))
    assert videos.count == 1


def test_the_window_looks_as_many_videos_ahead_as_asked():
    videos = ComposedVideos(lambda video: [], workers=0)
    questions = [Question([], [str(i // 3)], {}) for i in range(12)]
    read = []
    window = ahead((read.append(question) or question for question in questions), videos, 2)
    assert next(window) is questions[0]
    assert len(read) == 7  # two whole videos and the first question of a third
    assert [questions[0], *window] == questions


def test_stop_strings_cut_the_answer():
    assert stop_at(" left\n\nBecause", ["\n\n"]) == "left"
    assert stop_at("left. Q: next", ["Q:", "."]) == "left"
    assert stop_at("left ", None) == "left"
    assert stop_at("a b", "b") == "a"
    assert stop_at("a b", [""]) == "a b"


def test_batches_keep_the_order_and_never_mix_settings_or_numbers_of_videos():
    kinds = [({"a": 1}, 1)] * 3 + [({"a": 2}, 1)] + [({"a": 2}, 0)] * 2
    questions = [Question([], ["v"] * videos, generation) for generation, videos in kinds]
    made = list(batches(iter(questions), 2))
    assert [len(batch) for batch in made] == [2, 1, 1, 2]
    assert [question for batch in made for question in batch] == questions


def test_ignored_generation_arguments_are_named_once(checkpoint, caplog):
    model = LlavaDynImg(str(checkpoint), device="cpu")
    chosen = model._generation({"temperature": 0, "max_new_tokens": 5, "image_aspect_ratio": "pad", "until": ["x"]})
    assert chosen == {"do_sample": False, "max_new_tokens": 5, "temperature": None, "top_p": None, "top_k": None}
    assert model._generation({"temperature": 0.7})["do_sample"]
    assert model._generation({"do_sample": True})["do_sample"]
    assert not model._generation({"do_sample": True, "temperature": 0})["do_sample"]
    model._generation({"image_aspect_ratio": "pad"})
    assert caplog.text.count("image_aspect_ratio") == 1


def run(arguments: list[str], folder: Path, *launcher: str) -> subprocess.CompletedProcess[str]:
    """A real process with an empty cache and no network."""
    names = ("PATH", "VIRTUAL_ENV", "LANG")
    environment = {name: os.environ[name] for name in names if name in os.environ}
    environment |= {"HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, "lmms_eval", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=True)


def samples(folder: Path) -> dict[str, dict[int, str]]:
    found = {}
    for path in folder.rglob("*_samples_*.jsonl"):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        found[path.stem.split("_samples_")[1]] = {row["doc_id"]: row["filtered_resps"] for row in rows}
    return found


@pytest.mark.slow
def test_two_ranks_on_the_command_line_answer_as_one_process_does(checkpoint, clips, tmp_path):
    arguments = f"pretrained={checkpoint},num_images=1,max_new_tokens=4"
    command = ["--model", MODEL, "--model_args", arguments, "--tasks", "motion_qa", "--batch_size", "1"]
    command += ["--limit", "8", "--log_samples", "--output_path", "two"]
    run(command, tmp_path, "torch.distributed.run", "--nproc-per-node", "2", "-m")
    alone = evaluate(MODEL, limit=8, model_args=f"{arguments},device=cpu", batch_size=1)["samples"]
    one = {task: {row["doc_id"]: row["filtered_resps"][0] for row in rows} for task, rows in alone.items()}
    assert list(tmp_path.rglob("*_results.json"))
    assert {task: len(rows) for task, rows in one.items()} == {"motion_qa_mc": 8, "motion_qa_open": 8}
    assert samples(tmp_path / "two") == one
