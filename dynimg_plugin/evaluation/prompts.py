"""How a question is put to the model: the prompts of the paper's recipe (PLLaVA) and those of lmms-eval.

The wording is kept to the letter, full stops and spaces included: other words give other scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dynimg_plugin.evaluation.answers import LETTERS
from dynimg_plugin.evaluation.rows import Row


@dataclass(frozen=True)
class Prompt:
    """One way to put one kind of question.

    Attributes:
        text: with {question} and, for multiple choice, {options}.
        option: one line of the options, with {letter} and {option}.
        system: a system turn; none when empty.
        prefix: how the model's own turn begins; it goes on from there.
        max_new_tokens: length of the answer at most.
        capitalise: write the question as lmms-eval does ActivityNet's, which end in no mark: "what is he doing" becomes
            "What is he doing?". MSVD's and TGIF's may end in one already, and get no second.
    """

    text: str
    max_new_tokens: int
    option: str = "({letter}) {option}\n"
    system: str = ""
    prefix: str = ""
    capitalise: bool = False

    def messages(self, row: Row, wording: int = 0) -> list[dict[str, Any]]:
        """The conversation about a row's video, in lmms-eval's chat format."""
        video: dict[str, Any] = {"type": "video", "url": row.video, "start_time": row.start, "end_time": row.end}
        turns = [("system", [_text(self.system)])] if self.system else []
        turns.append(("user", [video, _text(self.question(row, wording))]))
        turns += [("assistant", [_text(self.prefix)])] if self.prefix else []
        return [{"role": role, "content": content} for role, content in turns]

    def question(self, row: Row, wording: int = 0) -> str:
        """The text of the user's turn."""
        question = row.questions[wording]
        if self.capitalise:
            question = question.strip().removesuffix("?").rstrip().capitalize() + "?"
        lines = zip(LETTERS, row.options, strict=False)
        options = "".join(self.option.format(letter=letter, option=option) for letter, option in lines)
        return self.text.format(question=question, options=options)


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


PROMPTS = {
    "pllava": {
        "open": Prompt(
            "The input consists of a sequence of key frames from a video. Answer the question concisely first and "
            "followed by significant events, characters, or objects that appear throughout the frames. "
            "Question:{question}\n",
            max_new_tokens=100,
            prefix="Answer: In the video,",
        ),
        "choice": Prompt(
            "Question: {question}\nOptions:\n{options}Only give the best option.",
            max_new_tokens=100,
            system=(
                "Carefully watch the video and pay attention to the cause and sequence of events, the detail and "
                "movement of objects, and the action and pose of persons. Based on your observations, select the best "
                "option that accurately addresses the question.\n"
            ),
            prefix="Best option:(",
        ),
        "aspects": Prompt(
            "{question}",
            max_new_tokens=100,
            system=(
                "You are Video-ChatGPT, a large vision-language assistant. You are able to understand the video "
                "content that the user provides, and assist the user with a variety of tasks using natural language."
                "Follow the instructions carefully and explain your answers in detail based on the provided video."
            ),
        ),
    },
    "lmms-eval": {
        "open": Prompt(
            "{question} Answer the question using a single word or phrase.", max_new_tokens=64, capitalise=True
        ),
        "choice": Prompt("Question:{question}\nOption:\n{options}Only give the best option.\n", max_new_tokens=16),
        "aspects": Prompt("{question}", max_new_tokens=1024),
    },
}


def find_prompt(variant: str, row: Row) -> Prompt:
    """The prompt of a variant for a row's kind of question.

    Raises:
        ValueError: an unknown variant.
    """
    if variant not in PROMPTS:
        raise ValueError(f"prompts={variant!r} is not known; allowed: {', '.join(PROMPTS)}")
    kind = "choice" if row.options else "open" if row.protocols == ["qa"] else "aspects"
    return PROMPTS[variant][kind]
