"""The result record, saved answers and what a run notes of itself."""

from __future__ import annotations

import json
import math

import pytest

from dynimg_plugin.evaluation.answer_store import AnswerStore, fingerprint, video_identity
from dynimg_plugin.evaluation.current import Evaluation, Measurements, Settings, begin, current
from dynimg_plugin.evaluation.record import RunRecord, TaskRecord, find_records
from dynimg_plugin.evaluation.recording import make_record
from dynimg_plugin.evaluation.samples import Sample, judge_free, read_samples
from dynimg_plugin.video import Clip

RESULTS = {
    "results": {
        "tgif_qa": {"alias": "TGIF", "samples": 2, "accuracy,none": 50.0, "accuracy_stderr,none": "N/A",
                    "score,none": math.nan},
        "dynimg_paper": {"alias": "x", " ": " "},
    },
    "configs": {"tgif_qa": {}},
    "n-samples": {"tgif_qa": {"original": 2, "effective": 1}},
    "config": {"model": "llava_dynimg", "model_args": "pretrained=x", "limit": 1.0},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_evaluation():
    before = current()
    yield
    begin(before)


def test_a_record_survives_the_disk_and_others_are_refused(tmp_path):
    record = RunRecord("2026", "m", {"t": TaskRecord({"accuracy": None}, 3, unreadable={"v": "gone"})}, "base")
    path = record.save(tmp_path / "2026_dynimg_record.json")
    assert RunRecord.load(path) == record
    assert find_records(tmp_path) == [path]
    for text, message in (("{", "is no result record"), ("[]", "is no result record"), ("{}", "format_version None")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            RunRecord.load(path)
    path.write_text('{"format_version": 1, "future": 2, "tasks": {}}')
    with pytest.raises(ValueError, match="unknown fields: future"):
        RunRecord.load(path)


def test_the_record_holds_the_numbers_the_settings_and_what_was_noted():
    evaluation = begin(Evaluation(Settings(), {"checkpoint": "base", "dynimg": {"num_images": 4}}, 576))
    evaluation.tasks["tgif_qa"] = {"split": "test", "prompts": "pllava", "unanswered": 1, "unreadable": {"a": "gone"}}
    evaluation.measured.add_video({"unique_frames": 20, "iframes_used": 5}, {"decode": 0.5, "compose": 0.25})
    evaluation.measured.questions = 2
    evaluation.measured.add("vision", 1.0)
    evaluation.measured.add("answer", 4.0)
    record = make_record(RESULTS, "20261122", logged=True)
    task = record.tasks["tgif_qa"]
    assert list(record.tasks) == ["tgif_qa"]
    assert task.scores == {"accuracy": 50.0, "score": None}
    assert (task.questions, task.samples, task.unanswered) == (1, "20261122_samples_tgif_qa.jsonl", 1)
    assert record.measured == {
        "videos": 1, "questions": 2, "answers_reused": 0, "tokens_per_video": 576, "iframe_share": 0.25,
        "seconds_per_video": {"decode": 0.5, "compose": 0.25, "vision": 0.5, "language": 1.5},
    }  # fmt: skip
    assert (record.checkpoint, record.arguments["limit"], record.arguments["model_args"]) == ("base", 1, "pretrained=x")


def test_other_models_have_a_record_without_measurements():
    begin(Evaluation())
    record = make_record(RESULTS, "20261122", logged=False)
    assert (record.measured, record.dynimg, record.tasks["tgif_qa"].samples) == (None, None, None)


def test_what_was_not_measured_is_none():
    seconds = Measurements().summary(576)["seconds_per_video"]
    assert seconds == {"decode": None, "compose": None, "vision": None, "language": None}


def test_samples_survive_lmms_evals_file_and_give_their_means(tmp_path):
    samples = [
        Sample("a", marks={"accuracy_micro": 100.0, "accuracy_x": 100.0}, category="x"),
        Sample("b", marks={"accuracy_micro": 0.0, "accuracy_x": 0.0}, category="x"),
        Sample(
            "c",
            marks={"accuracy_micro": 0.0, "accuracy_y": 0.0},
            category="y",
            requests=({"protocol": "qa", "prediction": "ä\u2028"},),
        ),
        Sample("d", unreadable=True, category="y"),
    ]
    path = tmp_path / "x.jsonl"
    lines = [json.dumps({"doc_id": 1, "answered": sample.to_dict()}, ensure_ascii=False) for sample in samples]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    assert read_samples(path) == samples
    assert judge_free(samples) == pytest.approx(
        {"answered": 75.0, "accuracy_micro": 100 / 3, "accuracy_x": 50.0, "accuracy_y": 0.0, "accuracy_macro": 25.0}
    )
    path.write_text('{"doc_id": 1}\n')
    with pytest.raises(ValueError, match=r"line 1: no answer of one of the six benchmarks"):
        read_samples(path)


def test_kept_answers_belong_to_one_model_and_one_question(tmp_path):
    store = AnswerStore(tmp_path, {"base": "x"})
    store.put(["what?", {"max_new_tokens": 4}], ("ä\n\u2028", 7, 2))
    store.path.write_text(store.path.read_text("utf-8") + '{"key": "ab', "utf-8")
    again = AnswerStore(tmp_path, {"base": "x"})
    assert again.get(["what?", {"max_new_tokens": 4}]) == ("ä\n\u2028", 7, 2)
    assert again.get(["what?", {"max_new_tokens": 5}]) is None
    again.put("new", ("b", 1, 1))
    assert len(AnswerStore(tmp_path, {"base": "x"}, rank=1)) == 2
    assert len(AnswerStore(tmp_path, {"base": "y"})) == 0


def test_checkpoints_and_videos_are_known_by_their_files(tmp_path):
    (tmp_path / "model.safetensors").write_text("a")
    before = fingerprint(tmp_path), video_identity(tmp_path / "model.safetensors")
    assert before == (fingerprint(tmp_path), video_identity(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").write_text("ab")
    assert before[0] != fingerprint(tmp_path)
    assert before[1] != video_identity(tmp_path / "model.safetensors")
    assert fingerprint("owner/name") == "owner/name"
    assert video_identity(Clip("gone.mp4", 1.0, 2.0)) == ["gone.mp4", 1.0, 2.0]
