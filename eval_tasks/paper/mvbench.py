"""MVBench: 20 tasks of 200 multiple-choice questions.

    ROOT/[MVBench/]json/<task>.json    [{"video", "question", "candidates", "answer"[, "start", "end"]}, ...]
                   video/<source>/...  as in `SOURCES`; the folder `video` may be left out

Five tasks ask about a part of a longer video, from `start` to `end` seconds. The repository also has these parts cut
out beforehand (folders ending in `_segment`): they are taken whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from dynimg_plugin.eval_tasks.paper.files import VIDEOS, find_folder, read_list
from dynimg_plugin.eval_tasks.paper.hub import hub_folder, hub_rows
from dynimg_plugin.evaluation.rows import Row


@dataclass(frozen=True)
class Source:
    """Where the videos of a task lie.

    Attributes:
        whole: folders of whole videos, from which a question's part is taken.
        cut: folders of videos that are the part already.
        fps: of folders of frames, pictures per second; 0 for videos.
    """

    whole: tuple[str, ...]
    cut: tuple[str, ...] = ()
    fps: int = 0


CHARADES = Source(("star/Charades_v1_480",), ("star/Charades_segment", "data0613/star/Charades_segment"))
CLEVRER = Source(("clevrer/video_validation", "data0613/clevrer/video_validation"))
PERCEPTION = Source(("perception/videos",))
SOURCES = {
    "action_sequence": CHARADES,
    "action_prediction": CHARADES,
    "action_antonym": Source(("ssv2_video", "ssv2_video_mp4")),
    "fine_grained_action": Source(("Moments_in_Time_Raw/videos",)),
    "unexpected_action": Source(("FunQA_test/test",)),
    "object_existence": CLEVRER,
    "object_interaction": CHARADES,
    "object_shuffle": PERCEPTION,
    "moving_direction": CLEVRER,
    "action_localization": Source(("sta/sta_video",), ("sta/sta_video_segment",)),
    "scene_transition": Source(("scene_qa/video",)),
    "action_count": PERCEPTION,
    "moving_count": CLEVRER,
    "moving_attribute": CLEVRER,
    "state_change": PERCEPTION,
    "fine_grained_pose": Source(("nturgbd", "nturgbd_convert")),
    "character_order": PERCEPTION,
    "egocentric_navigation": Source(("vlnqa",)),
    "episodic_reasoning": Source(("tvqa/frames_fps3_hq",), ("tvqa/video_fps3_hq_segment",), fps=3),
    "counterfactual_inference": CLEVRER,
}


def rows(
    root: Path | None, split: str, *, tasks: Sequence[str] = tuple(SOURCES), hub: dict[str, str] | None = None
) -> list[Row]:
    """The questions, one of each task in turn, so that a limited run sees all tasks.

    Args:
        root: the folder that holds MVBench; None loads from the hub repository `hub`.
        tasks: names of `SOURCES`.

    Raises:
        FileNotFoundError, ValueError: what is missing or does not fit, and where it was looked for.
    """
    if unknown := sorted(set(tasks) - set(SOURCES)):
        raise ValueError(f"MVBench has no task {', '.join(unknown)}; it has {', '.join(SOURCES)}")
    place = hub_folder(hub, "MVBench") if root is None else _place(root)
    by_task = [
        [
            _row(task, number, asked, place)
            for number, asked in enumerate(
                hub_rows(hub, "MVBench", split, task) if root is None else _annotations(place, task)
            )
        ]
        for task in tasks
    ]
    return [row for row in chain.from_iterable(zip_longest(*by_task)) if row is not None]


def _place(root: Path) -> Path:
    return root if (root / "json").is_dir() else find_folder(root, ["MVBench"])


def _annotations(place: Path, task: str) -> list[dict[str, Any]]:
    path = place / "json" / f"{task}.json"
    if not path.is_file():
        raise FileNotFoundError(f"MVBench: {path} is missing")
    return read_list(path, ("video", "question", "candidates", "answer"))


def _row(task: str, number: int, asked: dict[str, Any], place: Path) -> Row:
    path, whole = _find(SOURCES[task], place, str(asked["video"]))
    ticks = SOURCES[task].fps or 1  # a folder of frames is read as one frame per second
    bounds = [asked.get(name) for name in ("start", "end")] if whole else [None, None]
    start, end = (None if bound is None else float(bound) * ticks for bound in bounds)
    return Row(
        id=f"{task}_{number}",
        video=str(path),
        video_name=f"{SOURCES[task].whole[0]}/{asked['video']}",  # sources share names like 1.mp4, tasks share videos
        questions=[str(asked["question"])],
        answer=str(asked["answer"]),
        options=[str(option) for option in asked["candidates"]],
        category=task,
        start=start,
        end=end,
    )


def _find(source: Source, place: Path, video: str) -> tuple[Path, bool]:
    """The file or folder of a video, by any ending, and whether it is the whole one; else the likeliest path."""
    for folder in (*source.whole, *source.cut):
        for base in (place / "video", place):
            path = base / folder / video
            for candidate in (path, *(path.with_suffix(ending) for ending in VIDEOS if path.suffix)):
                if candidate.exists():
                    return candidate, folder in source.whole
    return place / "video" / source.whole[0] / video, True
