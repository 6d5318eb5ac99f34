"""The rows and clip files of motion_qa.

`python -m dynimg_plugin.eval_tasks.motion_qa.dataset` rewrites the .jsonl files that lie beside this module.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dynimg_plugin.eval_tasks.motion_qa.questions import KEY_FRAME_CATEGORIES, questions
from dynimg_plugin.eval_tasks.motion_qa.scenes import DRAWING, FPS, draw_frames, make_scene
from dynimg_plugin.video.write import write_video

SPLITS = {"train": range(0, 1_000_000), "held_out": range(1_000_000, 2_000_000)}  # seeds; no clip is in both
STORED_CLIPS = 48  # per split, in the .jsonl files that the benchmark reads


def cache_root() -> Path:
    """Where clips are kept once drawn. The folder's last part changes with the drawing."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dynimg_plugin" / "motion_qa" / f"v{DRAWING}"


def rows(split: str, count: int) -> list[dict[str, Any]]:
    """The questions about the first `count` clips of a split, those of one clip side by side. Draws nothing.

    A row has the keys id, clip (file name), seed, split, category, key_frames_suffice, question, options, answer
    (one of the options) and letter (the answer's). Raises ValueError for an unknown split or more clips than it has.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, known are {', '.join(SPLITS)}")
    if not 0 <= count <= len(SPLITS[split]):
        raise ValueError(f"{split} has {len(SPLITS[split])} clips, asked for {count}")
    return [row for seed in SPLITS[split][:count] for row in _clip_rows(split, seed)]


def _clip_rows(split: str, seed: int) -> list[dict[str, Any]]:
    name = f"{split}_{seed - SPLITS[split].start:06d}"
    return [
        {
            "id": f"{name}_{asked.category}",
            "clip": f"{name}.mp4",
            "seed": seed,
            "split": split,
            "category": asked.category,
            "key_frames_suffice": asked.category in KEY_FRAME_CATEGORIES,
            "question": asked.question,
            "options": list(asked.options),
            "answer": asked.answer,
            "letter": asked.letter,
        }
        for asked in questions(make_scene(seed))
    ]


def clip_path(row: Mapping[str, Any], root: Path | None = None) -> Path:
    """The mp4 file of a row's clip under `root` (by default `cache_root()`), drawn now if it is not there yet."""
    path = (cache_root() if root is None else root) / row["clip"]
    if not path.exists():
        write_video(path, draw_frames(make_scene(row["seed"])), fps=FPS, gop=250)
    return path


def write_jsonl(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    """Writes one JSON object per line and returns `path`."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def main(folder: Path = Path(__file__).parent) -> None:
    """Writes the file of every split into `folder`."""
    for split in SPLITS:
        write_jsonl(folder / f"{split}.jsonl", rows(split, STORED_CLIPS))


if __name__ == "__main__":
    main()
