"""Training data: clips of motion_qa's training split in real mp4 files, and one conversation about each."""

from __future__ import annotations

import json
from multiprocessing import Pool
from pathlib import Path

import numpy as np

from dynimg_plugin.eval_tasks.motion_qa.dataset import rows
from dynimg_plugin.eval_tasks.motion_qa.questions import open_prompt
from dynimg_plugin.eval_tasks.motion_qa.scenes import FPS, draw_frames, make_scene
from dynimg_plugin.video.write import write_video

FAST = {"preset": "ultrafast"}  # a third of the time; thousands of clips are drawn


def clip_file(folder: Path, seed: int) -> Path:
    return folder / f"{seed:06d}.mp4"


def draw_clips(folder: Path, count: int, *, workers: int) -> list[tuple[int, Path]]:
    """Draw the first `count` clips of the training split that `folder` lacks; (seed, file) of each."""
    clips = [(seed, clip_file(folder, seed)) for seed in range(count)]
    with Pool(workers) as pool:
        pool.starmap(_draw, [clip for clip in clips if not clip[1].exists()], chunksize=16)
    return clips


def _draw(seed: int, path: Path) -> None:
    write_video(path, draw_frames(make_scene(seed)), fps=FPS, gop=250, options=FAST)


def write_conversations(path: Path, count: int, *, seed: int) -> Path:
    """`messages` rows for `dynimg train`: one per clip, its five questions in random order."""
    rng, asked = np.random.default_rng(seed), rows("train", count)
    with path.open("w", encoding="utf-8") as file:
        for first in range(0, len(asked), 5):
            order = [asked[first + i] for i in rng.permutation(5)]
            turns = [turn for row in order for turn in (("user", open_prompt(row)), ("assistant", row["answer"]))]
            messages = [{"role": role, "content": text} for role, text in turns]
            video = clip_file(Path(), order[0]["seed"]).name
            file.write(json.dumps({"id": video, "video": video, "messages": messages}) + "\n")
    return path
