"""Replies of a judge, kept on disk as they come: a killed run asks only for what is missing."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynimg_plugin.evaluation.disk import append_line, digest, read_lines
from dynimg_plugin.evaluation.judging.protocols import Messages


@dataclass(frozen=True)
class Entry:
    """A reply, the model that the server says gave it, and the day."""

    reply: str
    served_by: str
    date: str


class ReplyCache:
    """One file of JSON lines per model, only ever appended to, one write per line.

    A line cut short (disk full, power cut) is skipped with a warning and asked for again. Threads, and processes on one
    machine, may share a folder.

    Args:
        folder: made when missing; None keeps replies in memory only.
        model: the judge's name; together with the prompt it is the key.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, model: str) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self.path: Path | None = None
        if folder is not None:
            self.path = Path(folder) / f"{file_name(model)}.jsonl"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            read_lines(self.path, self._take)

    def key(self, conversation: Messages) -> str:
        """The same for the same prompt to the same model."""
        return digest([self._model, conversation])

    def get(self, key: str) -> Entry | None:
        """What was kept under the key."""
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry; on disk when this returns."""
        with self._lock:
            self._entries[key] = entry
            if self.path is not None:
                append_line(self.path, {"key": key, **asdict(entry)})

    def _take(self, line: dict[str, Any]) -> None:
        key = line.pop("key")
        self._entries[key] = Entry(**line)


def file_name(model: str) -> str:
    """A judge's name in the name of a file; two judges never share one."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', model)[:60]}_{digest(model)[:8]}"
