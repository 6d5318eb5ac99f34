"""Rows of training data: LLaVA's JSON, `messages` as JSON lines, and the data sets that the package draws itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from dynimg_plugin.eval_tasks.motion_qa import dataset as motion_qa
from dynimg_plugin.eval_tasks.motion_qa.questions import multiple_choice_prompt, open_prompt

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
MARKERS = ("<image>", "<video>")


@dataclass(frozen=True)
class Row:
    """One conversation.

    Attributes:
        id: name of the row, unique in its file where the file gives one.
        messages: chat messages; contents are lists of {"type": "video"}, {"type": "image"} and {"type": "text"} items.
        media: one source per visual item, in order: a path inside `root`, or a function that returns one.
        root: folder that the paths lie in; None where functions make them.
    """

    id: str
    messages: list[dict[str, Any]]
    media: tuple[str | Callable[[], Path], ...]
    root: Path | None

    @property
    def kind(self) -> str:
        """What it is about: "video", "image" or "text"; no row has two of them."""
        found = (item["type"] for message in self.messages for item in message["content"])
        return next((kind for kind in found if kind != "text"), "text")

    @property
    def characters(self) -> int:
        return sum(len(_text(message)) for message in self.messages)


def _text(message: dict[str, Any]) -> str:
    return "".join(item.get("text", "") for item in message["content"])


def read_rows(source: str | Path, root: str | Path | None = None) -> list[Row]:
    """All rows of a file or of a drawn data set.

    Args:
        source: a .json or .jsonl file, or "motion_qa_mc:500" (or motion_qa_open, motion_qa), optionally with the
            split: "motion_qa_mc@held_out:100". Without a number all 240 rows that the benchmark has.
        root: folder of the videos and pictures; the data file's folder when None.

    Raises:
        FileNotFoundError: no such file or data set.
        ValueError: a row that is no conversation, or that names a file outside of `root`.
    """
    name, _, count = str(source).partition(":")
    name, _, split = name.partition("@")
    if name in DRAWN:
        if count and not count.isdigit():
            raise ValueError(f"{source}: {count!r} is no number of rows; write {name}:500")
        return list(DRAWN[name](split or "train", int(count or 5 * motion_qa.STORED_CLIPS)))
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{source} is no file and no data set; data sets: {', '.join(DRAWN)}")
    folder = Path(root) if root is not None else path.parent
    return [_row(number, line, path, folder) for number, line in enumerate(_records(path))]


def _records(path: Path) -> Iterable[dict[str, Any]]:
    text = path.read_text("utf-8")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        records = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}; .json holds one list, .jsonl one object per line") from error
    if not isinstance(records, list):
        raise ValueError(f"{path} holds a {type(records).__name__}; a list of rows is needed")
    return records


def _row(number: int, record: dict[str, Any], path: Path, root: Path) -> Row:
    where = f"{path}, row {number}"
    turns = record.get("messages") or record.get("conversations")
    if not turns:
        raise ValueError(f"{where}: neither `messages` nor `conversations`; it has {', '.join(record)}")
    waiting = {kind: list(_listed(record, kind)) for kind in ("video", "image")}
    media: list[str] = []
    messages = [_message(turn, waiting, media, where) for turn in turns]
    left = [(kind, source) for kind in waiting for source in waiting[kind]]
    first = next((message for message in messages if message["role"] == "user"), None)
    if first is not None:
        first["content"][:0] = [{"type": kind} for kind, _ in left]
    _check_talk(messages, where)
    sources = (*(source for _, source in left), *media)
    for source in sources:
        _check_inside(source, root, where)
    return Row(str(record.get("id", f"{path.stem}_{number}")), messages, sources, root)


def _check_talk(messages: list[dict[str, Any]], where: str) -> None:
    roles = [message["role"] for message in messages]
    if "user" not in roles or roles[-1] != "assistant":
        raise ValueError(f"{where}: it needs a question (human, user) and ends with no answer (gpt)")
    if any(message["role"] == "assistant" and not _text(message).strip() for message in messages):
        raise ValueError(f"{where}: an answer is empty")
    if len({item["type"] for message in messages for item in message["content"]} - {"text"}) > 1:
        raise ValueError(f"{where}: both a video and an image; put them into rows of their own")


def _listed(record: dict[str, Any], kind: str) -> list[str]:
    value = record.get(kind) or record.get(f"{kind}s") or []
    return [value] if isinstance(value, str) else list(value)


def _message(turn: dict[str, Any], waiting: dict[str, list[str]], media: list[str], where: str) -> dict[str, Any]:
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if role not in ROLES or not isinstance(content, str | list):
        raise ValueError(f"{where}: a turn of {role!r} with {type(content).__name__}; roles: {', '.join(ROLES)}")
    items = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {"role": ROLES[role], "content": [new for item in items for new in _items(item, waiting, media, where)]}


def _items(
    item: dict[str, Any], waiting: dict[str, list[str]], media: list[str], where: str
) -> Iterator[dict[str, Any]]:
    kind = item.get("type")
    if kind in ("video", "image"):
        source = next((item[key] for key in (kind, "path") if key in item), None)
        if source is None and not waiting[kind]:
            raise ValueError(f"{where}: a {kind} item without a file; give `{kind}` in it or beside the messages")
        media.append(source if source is not None else waiting[kind].pop(0))
        yield {"type": kind}
    elif kind == "text":
        yield {"type": "text", "text": _without_markers(item["text"])}
    else:
        raise ValueError(f"{where}: an item of type {kind!r}; allowed: text, video, image")


def _without_markers(text: str) -> str:
    """ "<image>\\nWhat moves?" -> "What moves?": the chat template writes the marker."""
    for marker in MARKERS:
        text = text.replace(f"{marker}\n", "").replace(f"\n{marker}", "").replace(marker, "")
    return text


def _check_inside(source: str, root: Path, where: str) -> None:
    """By the words of the path alone; links are followed when it is opened."""
    if "://" in source:
        raise ValueError(f"{where}: {source} is an address; only files under the data root are read")
    path = (root / source).absolute()
    if ".." in Path(source).parts or not path.is_relative_to(root.absolute()):
        raise ValueError(f"{where}: {source} lies outside of the data root {root}")


def open_path(row: Row, index: int) -> Path:
    """The file of a row's visual item; ValueError when a link leads out of the data root."""
    source = row.media[index]
    if callable(source):
        return source()
    assert row.root is not None
    path = row.root / source
    if not path.resolve().is_relative_to(row.root.resolve()):
        raise ValueError(f"row {row.id}: {source} is a link that leads out of the data root {row.root}")
    return path


def _motion_qa(forms: tuple[str, ...], split: str, count: int) -> Iterator[Row]:
    prompts = {"mc": (multiple_choice_prompt, "letter"), "open": (open_prompt, "answer")}
    clips = -(-count // (5 * len(forms)))
    made = (_drawn_row(record, form, *prompts[form]) for record in motion_qa.rows(split, clips) for form in forms)
    return islice(made, count)


def _drawn_row(record: dict[str, Any], form: str, prompt: Callable[[Any], str], answer: str) -> Row:
    question = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt(record)}]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": record[answer]}]}
    return Row(f"{record['id']}_{form}", [question, reply], (partial(motion_qa.clip_path, record),), None)


DRAWN: dict[str, Callable[[str, int], Iterator[Row]]] = {
    "motion_qa": partial(_motion_qa, ("mc", "open")),
    "motion_qa_mc": partial(_motion_qa, ("mc",)),
    "motion_qa_open": partial(_motion_qa, ("open",)),
}
