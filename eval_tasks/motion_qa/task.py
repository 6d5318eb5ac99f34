"""What the YAML files of motion_qa name: from a row to a prompt, from a reply to numbers.

A metric's value is, for one row, `{"score": 0.0 or 100.0, "clip": name}`, so that lmms-eval also finds its standard
errors, plain and clustered by clip; it is None where the row does not count for that metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynimg_plugin.eval_tasks.motion_qa.dataset import clip_path
from dynimg_plugin.eval_tasks.motion_qa.questions import (
    CATEGORIES,
    multiple_choice_prompt,
    open_prompt,
    score_multiple_choice,
    score_open,
)
from dynimg_plugin.evaluation.answers import normalise, read_letter
from dynimg_plugin.evaluation.samples import UNREADABLE

Value = dict[str, Any] | None
PARTS = ("accuracy", "accuracy_key_frames", "accuracy_between")
METRICS = (*PARTS, *(f"accuracy_{name}" for name in CATEGORIES), "readable")


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    """The path of the clip, drawn at the first call."""
    return [str(clip_path(doc))]


def doc_to_messages_mc(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """One user turn: the video and the question with its options."""
    return _user_turn(doc, multiple_choice_prompt(doc))


def doc_to_messages_open(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """One user turn: the video and the question."""
    return _user_turn(doc, open_prompt(doc))


def _user_turn(doc: dict[str, Any], text: str) -> list[dict[str, Any]]:
    video = {"type": "video", "url": str(clip_path(doc))}
    return [{"role": "user", "content": [video, {"type": "text", "text": text}]}]


def doc_to_text_mc(doc: dict[str, Any]) -> str:
    """The question with its options."""
    return multiple_choice_prompt(doc)


def doc_to_text_open(doc: dict[str, Any]) -> str:
    """The question without options."""
    return open_prompt(doc)


def process_results_mc(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Value]:
    """All metrics of one row from the reply `results[0]`."""
    readable = read_letter(results[0], doc["options"]) is not None
    return _values(doc, results[0], score_multiple_choice(doc, results[0]), readable)


def process_results_open(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Value]:
    """All metrics of one row from the reply `results[0]`."""
    return _values(doc, results[0], score_open(doc, results[0]), normalise(results[0]) != "")


def _values(doc: dict[str, Any], reply: str, right: bool, readable: bool) -> dict[str, Value]:
    if reply == UNREADABLE:  # nobody looked at the video: neither right nor wrong
        return dict.fromkeys(METRICS)
    value = {"score": 100.0 * right, "clip": doc["clip"]}
    part = "accuracy_key_frames" if doc["key_frames_suffice"] else "accuracy_between"
    counted = {"accuracy", part, f"accuracy_{doc['category']}"}
    readability = {"score": 100.0 * readable, "clip": doc["clip"]}
    return {**{name: value if name in counted else None for name in METRICS}, "readable": readability}
