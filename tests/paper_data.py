"""The six benchmarks in miniature: the layouts and schemas that people have, real codecs, odd files included.

With the checkpoint of `says_b()` every reply is "B"; the scores that follow stand in `EXPECTED`, counted by hand.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import GenerationConfig

from dynimg_plugin.eval_tasks.paper.mvbench import SOURCES
from dynimg_plugin.tiny import build_tiny
from dynimg_plugin.video.write import write_video


def frames(seed: int = 0, count: int = 12) -> Iterator[np.ndarray]:
    """A grey level per frame with a square that moves; another `seed`, another colour."""
    for index in range(count):
        frame = np.full((48, 64, 3), 40 + 4 * index, np.uint8)
        frame[16:32, index : index + 16] = (250, 20 * seed % 256, 90)
        yield frame


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")
    return path


def gif(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = [Image.fromarray(frame) for frame in frames(seed)]
    first.save(path, save_all=True, append_images=rest, duration=100)
    return path


def zero_shot(folder: Path, answers: list[tuple[str, str]], *, ids: bool = True) -> None:
    """[(video, answer), ...] as test_q.json and test_a.json; without ids the two are joined by place."""
    questions = [
        {"video_name": video, "question": f"what is {number}", "question_id": f"v_{video}_{number}"}
        for number, (video, _) in enumerate(answers)
    ]
    replies = [{"answer": answer} | ({"question_id": q["question_id"]} if ids else {}) for q, (_, answer) in zip(
        questions, answers, strict=True)]  # fmt: skip
    write(folder / "test_q.json", questions)
    write(folder / "test_a.json", replies[::-1] if ids else replies)


def msvd(root: Path) -> None:
    """AVI files; the third video is missing."""
    folder = root / "GPT_Zero_Shot_QA" / "MSVD_Zero_Shot_QA"
    zero_shot(folder, [("vid1", "b"), ("vid1", "zebra"), ("vid2", "B."), ("vid3", "b")])
    for seed in (1, 2):
        write_video(folder / "videos" / f"vid{seed}.avi", frames(seed), codec="mpeg4")


def msrvtt(root: Path) -> None:
    """A folder within the folder, answers without ids, one video that is cut off after its head."""
    folder = root / "GPT_Zero_Shot_QA" / "MSRVTT_Zero_Shot_QA"
    zero_shot(folder, [("video7010.mp4", "zebra"), ("video7011.mp4", "b"), ("video7012.mp4", "b")], ids=False)
    for seed in range(3):
        path = write_video(folder / "videos" / "all" / f"video701{seed}.mp4", frames(seed))
    path.write_bytes(path.read_bytes()[:200])


def tgif(root: Path) -> None:
    """GIF and MP4."""
    folder = root / "GPT_Zero_Shot_QA" / "TGIF_Zero_Shot_QA"
    zero_shot(folder, [("tumblr_a", "b"), ("tumblr_b", "two")])
    gif(folder / "gifs" / "tumblr_a.gif")
    write_video(folder / "mp4" / "tumblr_b.mp4", frames(3))


def activitynet(root: Path) -> None:
    """Names with v_, three containers."""
    folder = root / "GPT_Zero_Shot_QA" / "Activitynet_Zero_Shot_QA"
    zero_shot(folder, [("abc", "yes"), ("def", "b"), ("-g_h", "no")])
    write_video(folder / "all_test" / "v_abc.webm", frames(1), codec="libvpx-vp9")
    write_video(folder / "all_test" / "v_def.mkv", frames(2))
    write_video(folder / "all_test" / "v_-g_h.mp4", frames(3))


def video_chatgpt(root: Path) -> None:
    """Three files of questions, the videos in a folder of their own, one ending in capitals."""
    folder = root / "Video-ChatGPT"
    questions = folder / "Benchmarking_QA"
    write(questions / "generic_qa.json", [
        {"video_name": "one", "Q": "What happens?", "A": "b"},
        {"video_name": "two", "Q": "What happens?", "A": "a zebra runs"},
    ])  # fmt: skip
    write(questions / "temporal_qa.json", [{"video_name": "two", "Q": "In what order?", "A": "b"}])
    write(questions / "consistency_qa.json", [{"video_name": "one", "Q1": "Who?", "Q2": "Which one?", "A": "zebra"}])
    for seed, name in enumerate(("one", "two")):
        path = write_video(folder / "Test_Videos" / f"{name}.mp4", frames(seed))
    path.rename(path.with_suffix(".MP4"))


def mvbench(root: Path) -> None:
    """A question for each task, two for two of them; clip bounds, a folder of frames, WebM, one source missing."""
    folder = root / "MVBench"
    asked = {"question": "What moves?", "candidates": ["a dog", "a cat", "a red car"]}
    for task, source in SOURCES.items():
        ending = {"action_antonym": ".webm", "episodic_reasoning": ""}.get(task, ".mp4")
        rows = [{"video": f"clip{ending}", **asked, "answer": "a cat"}]
        rows += [{**rows[0], "answer": "a dog"}] if task in ("moving_count", "action_sequence") else []
        bounded = task in ("action_sequence", "episodic_reasoning")
        write(folder / "json" / f"{task}.json", [row | ({"start": 0.2, "end": 2.5} if bounded else {}) for row in rows])
        place = folder / "video" / source.whole[0] / f"clip{ending}"
        if ending == "":
            place.mkdir(parents=True)
            for number, frame in enumerate(frames()):
                Image.fromarray(frame).save(place / f"{number:05d}.jpg")
        elif task != "fine_grained_pose":  # NTU-RGB+D is not given away
            write_video(place, frames(5, 48), codec="libvpx-vp9" if ending == ".webm" else "libx264")


def all_six(root: Path) -> Path:
    for make in (msvd, msrvtt, tgif, activitynet, video_chatgpt, mvbench):
        make(root)
    return root


def says_b(folder: Path) -> Path:
    """A tiny checkpoint whose generation_config makes it answer "B" and stop."""
    model, processor = build_tiny("llava_onevision")
    (letter,) = processor.tokenizer.encode("B", add_special_tokens=False)
    end, pad = processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id
    bias = [[[letter], 100.0], [[letter, end], 1000.0]]
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad, sequence_bias=bias)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


# An honest loopback judge says yes / 5 where the reference stands in the reply, else no / 1.
EXPECTED = {
    "msvd_qa": {  # b, zebra, B.: the loopback judge takes the full stop amiss; the fourth question's video is missing
        "accuracy": 100 / 3, "score": (5 + 1 + 1) / 3, "judge_failed": 0.0,
        "exact_match": 200 / 3, "contained": 200 / 3, "answered": 75.0,
    },
    "msrvtt_qa": {"accuracy": 50.0, "score": 3.0, "exact_match": 50.0, "contained": 50.0, "answered": 200 / 3},
    "tgif_qa": {"accuracy": 50.0, "score": 3.0, "exact_match": 50.0, "answered": 100.0},
    "dynimg_activitynetqa": {"accuracy": 100 / 3, "score": (1 + 5 + 1) / 3, "exact_match": 100 / 3, "answered": 100.0},
    "dynimg_videochatgpt": {
        "correctness": 3.0, "detail": 3.0, "context": 3.0, "temporal": 5.0, "consistency": 1.0,
        "aspect_mean": (3 + 3 + 3 + 5 + 1) / 5, "per_judgement": (3 * (5 + 1) + 5 + 1) / 8, "judge_failed": 0.0,
        "exact_match": 50.0, "answered": 100.0,
    },
    "dynimg_mvbench": {  # 22 questions, 21 seen, 2 of them "a dog"
        "accuracy_micro": 1900 / 21, "accuracy_macro": (17 * 100 + 2 * 50) / 19,
        "accuracy_moving_count": 50.0, "accuracy_moving_direction": 100.0, "names_option": 100.0, "answered": 2100 / 22,
    },
}  # fmt: skip


def hub_copies(place: Path, root: Path, hf_home: Path) -> None:
    """Where lmms-eval's own tasks look: the repositories' annotations below `place`, the videos below `hf_home`."""
    from datasets import Dataset

    rows = [
        {"video_name": name, "question": "what is it", "answer": "b", "question_id": name, "type": "0"}
        for name in ("abc", "def", "-g_h")
    ]
    repository = place / "lmms-eval" / "ActivityNetQA"
    repository.mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(repository / "test.parquet")
    activity = root / "GPT_Zero_Shot_QA" / "Activitynet_Zero_Shot_QA" / "all_test"
    shutil.copytree(activity, hf_home / "activitynetqa" / "all_test")

    repository = place / "OpenGVLab" / "MVBench"
    shutil.copytree(root / "MVBench" / "json", repository / "json")
    configs = [{"config_name": task, "data_files": f"json/{task}.json"} for task in SOURCES]
    (repository / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n", "utf-8")
    videos, found = root / "MVBench" / "video", hf_home / "mvbench_video"
    shutil.copytree(videos, found)
    (found / "tvqa" / "frames_fps3_hq").rename(found / "tvqa" / "video_fps3_hq_segment")
    (found / "ssv2_video").rename(found / "ssv2_video_mp4")
