"""Answers kept on disk as they come, so that a killed run asks the model only for what is missing.

Unlike lmms-eval's `--use_cache` it needs no run id, tells a retrained checkpoint from the old one, takes back answers
when only the judge has changed, and never keeps that a video could not be read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynimg_plugin import __version__

logger = logging.getLogger(__name__)
Answer = tuple[str, int, int]  # text, input tokens, output tokens


class AnswerStore:
    """One file of JSON lines per model and process, only appended to.

    Args:
        folder: made when missing.
        model: everything that decides an answer beside the question: checkpoint (see fingerprint()), options, dtype.
        rank: of this process; the answers of all are read.
    """

    def __init__(self, folder: str | Path, model: Mapping[str, Any], rank: int = 0) -> None:
        model = {**model, "dynimg_plugin": __version__}
        name = digest(model)[:16]
        self.path = Path(folder) / f"answers_{name}_rank{rank}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._answers: dict[str, Answer] = {}
        for path in sorted(self.path.parent.glob(f"answers_{name}_rank*.jsonl")):
            self._read(path)
        if not self.path.exists():
            self._write({"model": model})
        elif not self.path.read_bytes().endswith(b"\n"):  # a line cut short by a kill
            with self.path.open("a") as file:
                file.write("\n")

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, question: Any) -> Answer | None:
        """The answer to exactly this question (anything that JSON can hold)."""
        return self._answers.get(digest(question))

    def put(self, question: Any, answer: Answer) -> None:
        """Keep an answer; it survives the process once this returns."""
        key = digest(question)
        self._answers[key] = answer
        self._write({"key": key, "answer": answer})

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _read(self, path: Path) -> None:
        broken = 0
        for line in path.read_text("utf-8", errors="replace").splitlines():
            try:
                found = json.loads(line)
                if "key" in found:
                    text, given, made = found["answer"]
                    self._answers[found["key"]] = (text, given, made)
            except (ValueError, KeyError, TypeError):
                broken += bool(line)
        if broken:
            logger.warning("%s: %d broken line(s) skipped; those questions will be asked again", path, broken)


def digest(content: Any) -> str:
    """SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def fingerprint(checkpoint: str | Path | None) -> Any:
    """What changes when a checkpoint does: names, sizes and times of a folder's files; a hub id as it is."""
    if checkpoint is None or not Path(checkpoint).is_dir():
        return str(checkpoint)
    files = sorted(path for path in Path(checkpoint).iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def video_identity(video: Any) -> Any:
    """Path, size and time of change of a video file or folder; with the bounds of a clip."""
    source, *bounds = video if isinstance(video, tuple) else (video,)
    try:
        state = Path(source).stat()
    except OSError:
        return [str(source), *bounds]
    return [str(source), state.st_size, state.st_mtime_ns, *bounds]
