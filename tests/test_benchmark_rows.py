"""Rows of the six benchmarks: what is found in the layouts that people have, and what is said when it is not."""

from __future__ import annotations

import json

import pytest
from paper_data import activitynet, all_six, hub_copies, msvd, mvbench, write, zero_shot

from dynimg_plugin.eval_tasks.paper import hub
from dynimg_plugin.eval_tasks.paper.files import VideoFolder, find_folder, read_list
from dynimg_plugin.eval_tasks.paper.mvbench import SOURCES
from dynimg_plugin.evaluation.current import Settings
from dynimg_plugin.evaluation.manifest import tasks_path
from dynimg_plugin.evaluation.rows import Row
from dynimg_plugin.evaluation.task_files import missing_videos, read_rows, task_configs

NAMES = ["msvd_qa", "msrvtt_qa", "tgif_qa", "dynimg_activitynetqa", "dynimg_videochatgpt", "dynimg_mvbench"]


def rows(name, root=None):
    config = task_configs([name])[name]
    return read_rows(config, Settings(data_root=None if root is None else str(root)))


def test_the_group_holds_the_six_and_every_yaml_names_split_count_and_prompts():
    configs = task_configs(["dynimg_paper", "mvbench"])
    assert list(configs) == [*NAMES, "mvbench"]
    assert configs.pop("mvbench") is None
    for config in configs.values():
        assert config["test_split"] in ("test", "train")
        assert config["metadata"]["expected"] > 2000
        assert config["metadata"]["prompts"] == "pllava"


def test_questions_meet_their_answers_by_id_and_by_place(tmp_path):
    all_six(tmp_path)
    by_id = rows("msvd_qa", tmp_path)  # the answers' file is in the opposite order
    assert [(row.video_name, row.answer) for row in by_id] == [
        ("vid1", "b"), ("vid1", "zebra"), ("vid2", "B."), ("vid3", "b"),
    ]  # fmt: skip
    by_place = rows("msrvtt_qa", tmp_path)
    assert [row.answer for row in by_place] == ["zebra", "b", "b"]
    assert by_place[0].video.endswith("videos/all/video7010.mp4")


@pytest.mark.parametrize("above", ["", "GPT_Zero_Shot_QA", "eval/GPT_Zero_Shot_QA"])
def test_the_root_may_lie_above_and_the_set_itself_may_be_the_root(tmp_path, above):
    zero_shot(tmp_path / above / "MSVD_zero_shot_qa", [("vid1", "b")])
    assert len(rows("msvd_qa", tmp_path)) == 1
    assert len(rows("msvd_qa", tmp_path / above / "MSVD_zero_shot_qa")) == 1


def test_videos_are_found_by_any_ending_and_missing_ones_named_where_they_were_looked_for(tmp_path):
    activitynet(tmp_path)
    found = rows("dynimg_activitynetqa", tmp_path)
    assert [row.video.rpartition("/")[2] for row in found] == ["v_abc.webm", "v_def.mkv", "v_-g_h.mp4"]
    assert missing_videos(found) == []
    msvd(tmp_path)
    (lost,) = missing_videos(rows("msvd_qa", tmp_path))
    assert lost == str(tmp_path / "GPT_Zero_Shot_QA" / "MSVD_Zero_Shot_QA" / "vid3.mp4")


def test_of_several_files_of_one_name_the_same_is_taken_everywhere(tmp_path):
    for name in ("b/x.webm", "a/x.gif", "c/x.mp4", "a/x.mp4", "a/x.txt", "a/x.y.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    videos = VideoFolder(tmp_path)
    assert videos.path("x") == videos.path("x.avi") == str(tmp_path / "a" / "x.mp4")
    assert videos.path("x.y") == str(tmp_path / "a" / "x.y.avi")
    assert videos.path("nothing.avi", "v_") == str(tmp_path / "v_nothing.avi")


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        ([{"video_name": "a", "question": "?"}], [], "1 questions but 0 answers"),
        ([{"video_name": "a"}], [{"answer": "b"}], r"row 0 lacks question; it has video_name"),
        (
            [{"video_name": "a", "question": "?", "question_id": 1}],
            [{"answer": "b", "question_id": 2}],
            "1 questions have no answer, the first is question_id 1",
        ),
    ],
)
def test_annotations_that_do_not_fit_are_refused(tmp_path, questions, answers, message):
    write(tmp_path / "MSVD_Zero_Shot_QA" / "test_q.json", questions)
    write(tmp_path / "MSVD_Zero_Shot_QA" / "test_a.json", answers)
    with pytest.raises(ValueError, match=message):
        rows("msvd_qa", tmp_path)


def test_files_that_are_no_annotations_are_named(tmp_path):
    (tmp_path / "x.json").write_text("[{")
    with pytest.raises(ValueError, match=r"x\.json is no JSON"):
        read_list(tmp_path / "x.json", ())
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    assert read_list(tmp_path / "x.jsonl", ("a",)) == [{"a": 1}, {"a": 2}]
    with pytest.raises(FileNotFoundError, match="holds no folder named TGIF_Zero_Shot_QA"):
        rows("tgif_qa", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no generic_qa\.json"):
        rows("dynimg_videochatgpt", tmp_path)
    with pytest.raises(FileNotFoundError, match="MVBench or Bench"):
        find_folder(tmp_path, ["MVBench", "Bench"])


def test_video_chatgpt_has_three_kinds_of_questions(tmp_path):
    all_six(tmp_path)
    found = rows("dynimg_videochatgpt", tmp_path)
    assert [row.protocols for row in found] == [
        ["correctness", "detail", "context"], ["correctness", "detail", "context"], ["temporal"], ["consistency"],
    ]  # fmt: skip
    assert found[-1].questions == ["Who?", "Which one?"]
    assert rows("dynimg_videochatgpt", tmp_path / "Video-ChatGPT") == found
    flat = tmp_path / "flat"
    (tmp_path / "Video-ChatGPT").rename(flat)
    assert len(rows("dynimg_videochatgpt", flat)) == 4


def test_mvbench_goes_round_its_tasks_with_bounds_frames_and_cut_segments(tmp_path):
    mvbench(tmp_path)
    found = rows("dynimg_mvbench", tmp_path)
    assert [row.category for row in found[:20]] == list(SOURCES)
    assert len(found) == 22
    by_task = {row.category: row for row in found[:20]}
    assert (by_task["action_sequence"].start, by_task["action_sequence"].end) == (0.2, 2.5)
    frames = by_task["episodic_reasoning"]  # 3 pictures per second, read as one per second
    assert (frames.start, frames.end) == pytest.approx((0.6, 7.5))
    assert frames.found
    assert by_task["moving_count"].start is None
    assert by_task["moving_count"].video_name == by_task["moving_direction"].video_name  # one video, one cluster
    assert by_task["moving_count"].video_name != by_task["action_count"].video_name
    assert missing_videos(found) == [str(tmp_path / "MVBench" / "video" / "nturgbd" / "clip.mp4")]
    star = tmp_path / "MVBench" / "video" / "star"
    (star / "Charades_v1_480").rename(star / "Charades_segment")
    cut = next(row for row in rows("dynimg_mvbench", tmp_path / "MVBench") if row.category == "action_sequence")
    assert (cut.start, cut.end) == (None, None)
    assert cut.video.endswith("star/Charades_segment/clip.mp4")


def test_mvbench_refuses_unknown_tasks_missing_files_and_answers_that_are_no_option(tmp_path):
    mvbench(tmp_path)
    config = task_configs(["dynimg_mvbench"])["dynimg_mvbench"]
    config["dataset_kwargs"]["tasks"] = ["moving_counts"]
    with pytest.raises(ValueError, match="MVBench has no task moving_counts; it has action_sequence"):
        read_rows(config, Settings(data_root=str(tmp_path)))
    file = tmp_path / "MVBench" / "json" / "moving_count.json"
    write(file, [{"video": "a", "question": "?", "candidates": ["1", "2"], "answer": "3"}])
    with pytest.raises(ValueError, match="question moving_count_0: the answer '3' is none of"):
        rows("dynimg_mvbench", tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"moving_count\.json is missing"):
        rows("dynimg_mvbench", tmp_path)


def test_the_hub_repositories_are_read_where_lmms_eval_keeps_them(tmp_path, monkeypatch):
    root = all_six(tmp_path / "data")
    hub_copies(tmp_path / "cwd", root, tmp_path / "home")
    repository = tmp_path / "cwd" / "lmms-eval" / "VideoChatGPT"
    generic = {"video_name": "one", "question": "What?", "answer": "b", "question_1": "None", "question_2": "None"}
    one, other = {**generic, "question": "None", "question_1": "Who?"}, {**generic, "question_2": "Which?"}
    for kind, asked in {"Generic": [generic], "Temporal": [generic], "Consistency": [other, one]}.items():
        write(repository / f"{kind}.json", asked)
    configs = [
        {"config_name": kind, "data_files": [{"split": "test", "path": f"{kind}.json"}]}
        for kind in ("Generic", "Temporal", "Consistency")
    ]
    (repository / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    (root / "Video-ChatGPT" / "Test_Videos").rename(tmp_path / "home" / "videochatgpt")
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(hub, "HF_HOME", str(tmp_path / "home"))
    found = rows("dynimg_activitynetqa")
    assert [row.video.rpartition("/")[2] for row in found] == ["v_abc.webm", "v_def.mkv", "v_-g_h.mp4"]
    *_, pair = rows("dynimg_videochatgpt")
    assert (pair.questions, pair.found) == (["Who?", "Which?"], True)
    assert len(missing_videos(rows("dynimg_mvbench"))) == 1


def test_without_root_a_benchmark_that_the_hub_lacks_or_cannot_give_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "HF_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="lmms-eval has no hub repository of this benchmark; give the folder"):
        rows("msvd_qa")
    with pytest.raises(FileNotFoundError, match=r"lmms-eval/ActivityNetQA could not be loaded"):
        rows("dynimg_activitynetqa")
    with pytest.raises(FileNotFoundError, match="run lmms-eval's own task of this benchmark once"):
        rows("dynimg_videochatgpt")


def test_a_row_is_worth_what_its_answer_says():
    choice = Row("1", "v.mp4", "v", ["?"], "a cat", options=["a dog", "a cat"], category="moving_count")
    assert choice.sample(["(B) a cat"]).marks == {
        "accuracy_micro": 100.0, "names_option": 100.0, "accuracy_moving_count": 100.0,
    }  # fmt: skip
    for reply in ("", "It is a dog", "A"):
        assert choice.sample([reply]).marks["accuracy_micro"] == 0.0
    assert choice.sample([""]).marks["names_option"] == 0.0
    lost = choice.sample(["[the video could not be read]"])
    assert (lost.unreadable, lost.marks, lost.requests, lost.category) == (True, {}, (), "moving_count")


def test_the_tasks_folder_is_the_installed_one():
    assert (tasks_path() + "/paper") in str(hub.__file__)
