"""Answers kept on disk as they come, so that a killed run asks the model only for what is missing.

Unlike lmms-eval's `--use_cache` it needs no run id, tells a retrained checkpoint from the old one, takes back answers
when only the judge has changed, and never keeps that a video could not be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynimg_plugin import __version__
from dynimg_plugin.evaluation.disk import append_line, digest, read_lines

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
            read_lines(path, self._take)
        if not self.path.exists():
            append_line(self.path, {"model": model})

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, question: Any) -> Answer | None:
        """The answer to exactly this question (anything that JSON can hold)."""
        return self._answers.get(digest(question))

    def put(self, question: Any, answer: Answer) -> None:
        """Keep an answer; it survives the process once this returns."""
        key = digest(question)
        self._answers[key] = answer
        append_line(self.path, {"key": key, "answer": answer})

    def _take(self, line: dict[str, Any]) -> None:
        if "key" in line:
            text, given, made = line["answer"]
            self._answers[line["key"]] = (text, given, made)


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
