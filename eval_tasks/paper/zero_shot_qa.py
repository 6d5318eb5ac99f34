"""Open questions in the layout of GPT_Zero_Shot_QA (Video-LLaVA's), which most people have.

ROOT/[GPT_Zero_Shot_QA/]MSVD_Zero_Shot_QA/test_q.json    [{"video_name", "question", "question_id"}, ...]
                                          test_a.json    [{"answer", "question_id"}, ...]
                                          videos/...     any folders, any endings
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynimg_plugin.eval_tasks.paper.files import VideoFolder, find_file, find_folder, read_list
from dynimg_plugin.eval_tasks.paper.hub import hub_folder, hub_rows
from dynimg_plugin.evaluation.rows import Row


def rows(
    root: Path | None,
    split: str,
    *,
    folder: str,
    questions: str = "test_q.json",
    answers: str = "test_a.json",
    prefix: str = "",
    hub: dict[str, str] | None = None,
) -> list[Row]:
    """The questions of one set, those about one video side by side as the annotations have them.

    Args:
        root: the folder that holds the benchmarks; None loads from the hub repository `hub`, where there is one.
        folder: the set's folder. questions, answers: its annotation files.
        prefix: what the files' names have in front of the annotations' ("v_" in ActivityNet).
        hub: repository and the folder below HF_HOME into which lmms-eval unpacks its videos.

    Raises:
        FileNotFoundError, ValueError: what is missing or does not fit, and where it was looked for.
    """
    if root is None:
        asked = hub_rows(hub, folder, split)
        place = hub_folder(hub, folder)
    else:
        place = find_folder(root, [folder])
        asked = joined(
            read_list(find_file(place, questions), ("video_name", "question")),
            read_list(find_file(place, answers), ("answer",)),
            place,
        )
    videos = VideoFolder(place)
    return [
        Row(
            id=str(row.get("question_id", number)),
            video=videos.path(str(row["video_name"]), prefix),
            video_name=str(row["video_name"]),
            questions=[str(row["question"])],
            answer=str(row["answer"]),
            protocols=["qa"],
        )
        for number, row in enumerate(asked)
    ]


def joined(questions: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]], place: Path) -> list[dict[str, Any]]:
    """Each question with its answer: by question_id where both files have one for every row, else by place.

    Raises:
        ValueError: a question without answer; joined wrongly, every score would be noise.
    """
    if len(questions) != len(answers):
        raise ValueError(f"{place}: {len(questions)} questions but {len(answers)} answers; the two files do not belong")
    by_id = {row.get("question_id"): row for row in answers}
    if None in by_id or len(by_id) < len(answers) or any("question_id" not in row for row in questions):
        return [{**answer, **question} for question, answer in zip(questions, answers, strict=True)]
    if lost := [row["question_id"] for row in questions if row["question_id"] not in by_id]:
        raise ValueError(f"{place}: {len(lost)} questions have no answer, the first is question_id {lost[0]!r}")
    return [{**by_id[row["question_id"]], **row} for row in questions]
