"""Video-ChatGPT's benchmark: three files of questions, five aspects to judge.

ROOT/[any folders/]generic_qa.json       [{"video_name", "Q", "A"}, ...]    correctness, detail, context
                   temporal_qa.json      [{"video_name", "Q", "A"}, ...]    temporal
                   consistency_qa.json   [{"video_name", "Q1", "Q2", "A"}, ...]    both answers, judged together
                   Test_Videos/...       any folders, any endings
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynimg_plugin.eval_tasks.paper.files import VideoFolder, find_file, find_folder, read_list
from dynimg_plugin.eval_tasks.paper.hub import hub_folder, hub_rows
from dynimg_plugin.evaluation.rows import Row

FOLDERS = ("Video-ChatGPT", "Video_ChatGPT", "VideoChatGPT", "VCGBench", "Benchmarking")
KINDS = {  # name in the repository -> file, its fields, what is judged
    "Generic": ("generic_qa.json", ("Q",), ("correctness", "detail", "context")),
    "Temporal": ("temporal_qa.json", ("Q",), ("temporal",)),
    "Consistency": ("consistency_qa.json", ("Q1", "Q2"), ("consistency",)),
}


def rows(
    root: Path | None, split: str, *, folders: Sequence[str] = FOLDERS, hub: dict[str, str] | None = None
) -> list[Row]:
    """The questions of all three files, one file after the other.

    Args:
        root: the folder that holds the benchmarks; None loads from the hub repository `hub`.
        folders: names that the benchmark's folder may have; without one of these, the root itself is looked into.

    Raises:
        FileNotFoundError, ValueError: what is missing or does not fit, and where it was looked for.
    """
    name = folders[0]
    place = hub_folder(hub, name) if root is None else _place(root, folders)
    videos = VideoFolder(place)
    found = []
    for kind, (file, fields, protocols) in KINDS.items():
        if root is None:
            asked = [_from_hub(row) for row in hub_rows(hub, name, split, kind)]
            asked = _paired(asked) if kind == "Consistency" else asked
        else:
            asked = read_list(find_file(place, file), ("video_name", "A", *fields))
        for number, row in enumerate(asked):
            found.append(
                Row(
                    id=f"{kind.lower()}_{number}",
                    video=videos.path(str(row["video_name"])),
                    video_name=str(row["video_name"]),
                    questions=[str(row[field]) for field in fields],
                    answer=str(row["A"]),
                    protocols=list(protocols),
                )
            )
    return found


def _place(root: Path, folders: Sequence[str]) -> Path:
    try:
        return find_folder(root, folders)
    except FileNotFoundError:
        find_file(root, KINDS["Generic"][0])  # raises where it is not here either
        return root


def _from_hub(row: dict[str, Any]) -> dict[str, Any]:
    """lmms-eval's column names in the original's; "None" stands for nothing."""
    names = {"Q": "question", "Q1": "question_1", "Q2": "question_2", "A": "answer", "video_name": "video_name"}
    return {name: row.get(column) for name, column in names.items() if row.get(column) not in (None, "None")}


def _paired(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Consistency in the repository: a row for each wording. Two of one video with one answer are a pair.

    Raises:
        ValueError: a wording without its other.
    """
    wordings: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        kept = wordings.setdefault((row["video_name"], row["A"]), {"Q1": [], "Q2": []})
        for name in kept.keys() & row.keys():
            kept[name].append(row[name])
    if odd := [video for (video, _), kept in wordings.items() if len(kept["Q1"]) != len(kept["Q2"])]:
        raise ValueError(f"Video-ChatGPT: consistency questions do not come in pairs, the first about video {odd[0]}")
    return [
        {"video_name": video, "A": answer, "Q1": one, "Q2": other}
        for (video, answer), kept in wordings.items()
        for one, other in zip(kept["Q1"], kept["Q2"], strict=True)
    ]
