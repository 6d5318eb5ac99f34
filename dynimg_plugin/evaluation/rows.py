"""A question of a benchmark, whatever layout it came in, and what an answer to it is worth without a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynimg_plugin.evaluation.answers import LETTERS, contained, exact_match, read_letter, word_f1
from dynimg_plugin.evaluation.samples import CATEGORY, UNREADABLE, Sample


@dataclass(frozen=True)
class Row:
    """One question about one video.

    Attributes:
        id: unique within the benchmark.
        video: path of the file or folder of frames; where there is none, the path that was looked for.
        video_name: as the annotations name it; questions about one video share it.
        questions: one wording, or the two of a consistency pair, which are answered apart.
        answer: the reference answer; for multiple choice one of `options`.
        protocols: what a judge is asked about the answer; nothing for multiple choice.
        options: of multiple choice, in order; empty for open questions.
        category: the task of MVBench; empty elsewhere.
        start, end: the part of the video that is asked about, in seconds (of a folder of frames: in frames).
    """

    id: str
    video: str
    video_name: str
    questions: list[str]
    answer: str
    protocols: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    category: str = ""
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        if self.options and self.answer not in self.options:
            raise ValueError(f"question {self.id}: the answer {self.answer!r} is none of {self.options}")

    @property
    def found(self) -> bool:
        """Whether there is a file or folder to read."""
        return Path(self.video).exists()

    def sample(self, replies: Sequence[str]) -> Sample:
        """The row with its answers, one per wording."""
        category = self.category or None
        if any(reply == UNREADABLE for reply in replies):
            return Sample(self.video_name, unreadable=True, category=category)
        marks = self._choice_marks(replies[0]) if self.options else self._open_marks(replies)
        return Sample(self.video_name, False, category, marks, tuple(self._requests(replies)))

    def _open_marks(self, replies: Sequence[str]) -> dict[str, float]:
        """Of a consistency pair, the mean of both answers."""
        marks = {"exact_match": exact_match, "contained": contained, "word_f1": word_f1}
        return {
            name: 100.0 * sum(mark(reply, self.answer) for reply in replies) / len(replies)
            for name, mark in marks.items()
        }

    def _choice_marks(self, reply: str) -> dict[str, float]:
        """An answer that names no option, an empty one too, is wrong."""
        letter = read_letter(reply, self.options)
        right = 100.0 * (letter == LETTERS[self.options.index(self.answer)])
        marks = {"accuracy_micro": right, "names_option": 100.0 * (letter is not None)}
        return marks | ({f"{CATEGORY}{self.category}": right} if self.category else {})

    def _requests(self, replies: Sequence[str]) -> list[dict[str, Any]]:
        pair = {"question2": self.questions[-1], "prediction2": replies[-1]}
        common = {
            "question": self.questions[0],
            "answer": self.answer,
            "prediction": replies[0],
            "video": self.video_name,
            **(pair if len(self.questions) > 1 else {}),
        }
        return [{"protocol": protocol, **common} for protocol in self.protocols]
