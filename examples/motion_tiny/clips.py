"""Training data: clips of motion_qa's training split in real mp4 files, and one conversation about each."""

from __future__ import annotations

import json
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from base import SIMPLE

from dynimg_plugin.eval_tasks.motion_qa.questions import about_key_frames, open_prompt, questions
from dynimg_plugin.eval_tasks.motion_qa.scenes import COLOURS, FPS, Scene, draw_frames, make_scene
from dynimg_plugin.video.write import write_video

ROLES = ("user", "assistant")
ASKED = 2  # shapes and presences per clip
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


def simple_questions(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Questions that name a colour: shapes, presences, which object stays, and where the others go."""
    shapes = {track.colour: track.shape for track in scene.tracks}
    shown, absent = list(shapes), [colour for colour in COLOURS if colour not in shapes]
    about = [shown[i] for i in rng.permutation(len(shown))[:ASKED]]
    asked = [(SIMPLE["shape"].format(colour), shapes[colour]) for colour in about]
    for _ in range(ASKED):
        among = absent if absent and rng.integers(2) else shown
        colour = among[rng.integers(len(among))]
        asked.append((SIMPLE["presence"].format(colour), "yes" if colour in shapes else "no"))
    moving = [(scene.slow, scene.slow_direction)] + [
        (track, scene.fast_direction) for track in scene.events.get("fast", ())
    ]
    asked += [(SIMPLE["direction"].format(track.colour), direction) for track, direction in moving]
    return asked + [
        (SIMPLE["motion"].format(t.colour), word) for t, word in ((scene.slow, "yes"), (scene.static, "no"))
    ]


def conversation(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """(question, answer): all that motion_qa may ask about a clip and simple ones, in random order."""
    own = dict.fromkeys([*about_key_frames(scene), *questions(scene)])
    asked = [(open_prompt({"question": q.question, "category": q.category}), q.answer) for q in own]
    asked += simple_questions(scene, rng)
    return [asked[i] for i in rng.permutation(len(asked))]


def write_conversations(path: Path, count: int, *, seed: int) -> Path:
    """`messages` rows for `dynimg train`, one per clip."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for clip in range(count):
            turns = [turn for asked in conversation(make_scene(clip), rng) for turn in zip(ROLES, asked, strict=True)]
            messages = [{"role": role, "content": text} for role, text in turns]
            video = clip_file(Path(), clip).name
            file.write(json.dumps({"id": video, "video": video, "messages": messages}) + "\n")
    return path
