"""Replies of a judge, kept on disk as they come: a killed run asks only for what is missing."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from dynimg_plugin.evaluation.judging.protocols import Messages, fingerprint

logger = logging.getLogger(__name__)


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
            self._load(self.path)

    def key(self, conversation: Messages) -> str:
        """The same for the same prompt to the same model."""
        return fingerprint([self._model, conversation])

    def get(self, key: str) -> Entry | None:
        """What was kept under the key."""
        return self._entries.get(key)

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry; on disk when this returns."""
        line = (json.dumps({"key": key, **asdict(entry)}, ensure_ascii=False) + "\n").encode("utf-8")
        with self._lock:
            self._entries[key] = entry
            if self.path is not None:
                self._append(self.path, line)

    @staticmethod
    def _append(path: Path, line: bytes) -> None:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(file).st_size
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            line = b"\n" + line if torn else line
            if os.write(file, line) != len(line):
                raise OSError(f"{path}: the disk took only part of a judge's reply; make room and start again")
        finally:
            os.close(file)

    def _load(self, path: Path) -> None:
        lines = path.read_bytes().splitlines() if path.exists() else []
        broken = 0
        for line in filter(bytes.strip, lines):
            try:
                fields = json.loads(line)
                key = fields.pop("key")
                self._entries[key] = Entry(**fields)
            except (ValueError, KeyError, TypeError, AttributeError):
                broken += 1
        if broken:
            logger.warning("%s: %d broken line(s) skipped; their replies will be asked for again", path, broken)


def file_name(model: str) -> str:
    """A judge's name in the name of a file; two judges never share one."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', model)[:60]}_{fingerprint(model)[:8]}"
