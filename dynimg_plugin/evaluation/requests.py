"""lmms-eval's chat requests as questions about videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_eval.protocol import ChatMessages

from dynimg_plugin.video import Clip


@dataclass
class Question:
    """A conversation whose visual items are bare, its videos in order, and how to generate the answer.

    A conversation that ends in the assistant's turn is gone on with. `known` is an answer from an earlier run.
    """

    conversation: list[dict[str, Any]]
    videos: list[Any]
    generation: dict[str, Any]
    known: Any = None


def to_question(messages: ChatMessages, generation: dict[str, Any]) -> Question:
    """Split a request into conversation and videos.

    lmms-eval tells kinds of media by the file's ending: a .webm video arrives as audio, a .gif as an image.

    Raises:
        ValueError: for still images and audio, which the model does not take.
    """
    conversation, videos = [], []
    for message in messages.messages:
        content: list[dict[str, Any]] = []
        for item in message.content:
            if item.type == "text":
                content.append({"type": "text", "text": item.text})
            else:
                videos.append(_video(item))
                content.append({"type": "video"})
        conversation.append({"role": message.role, "content": content})
    return Question(conversation, videos, dict(generation))


def _video(item: Any) -> Any:
    ending = Path(item.url).suffix.lower() if isinstance(item.url, str | Path) else ""
    if item.type != "video" and (item.type, ending) not in {("audio", ".webm"), ("image", ".gif")}:
        raise ValueError(f"llava_dynimg answers questions about videos; this request holds an {item.type}: {item.url}")
    bounds = getattr(item, "start_time", None), getattr(item, "end_time", None)
    return item.url if bounds == (None, None) else Clip(item.url, *bounds)


def stop_at(text: str, until: str | list[str] | None) -> str:
    """The text before the first of the stop strings, without outer white space."""
    for stop in [until] if isinstance(until, str) else until or []:
        if stop:
            text = text.split(stop)[0]
    return text.strip()
