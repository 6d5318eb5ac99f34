"""What a judge is asked and what it may answer.

The protocol is that of Video-ChatGPT (arXiv 2306.05424): open answers are judged right or wrong with a score of 0 to 5,
long answers on five aspects with a score of 0 to 5. The wording is ours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dynimg_plugin.evaluation.disk import digest

ASPECTS = ("correctness", "detail", "context", "temporal", "consistency")
PROTOCOLS = ("qa", *ASPECTS)
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class JudgeRequest:
    """One question to the judge.

    Args:
        protocol: "qa" asks for yes or no and a score, the five aspects for a score.
        question: what the video model was asked.
        answer: the reference answer.
        prediction: the video model's answer.
        question2: the other wording of the question; for "consistency".
        prediction2: the video model's answer to it; for "consistency".
        video: the video's name; confidence intervals resample videos. The judge does not see it.
    """

    protocol: str
    question: str
    answer: str
    prediction: str
    question2: str | None = None
    prediction2: str | None = None
    video: str = ""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"unknown judge protocol {self.protocol!r}; known: {', '.join(PROTOCOLS)}")
        if (self.protocol == "consistency") is (self.question2 is None or self.prediction2 is None):
            raise ValueError(
                f"protocol {self.protocol!r} with question2={self.question2!r}, prediction2={self.prediction2!r}: "
                "consistency needs both, the other protocols neither"
            )

    def to_dict(self) -> dict[str, Any]:
        """For sample files; `JudgeRequest(**request.to_dict()) == request`."""
        return {name: value for name, value in asdict(self).items() if value is not None}


_ROLE = (
    "You grade what a model said about a video. You cannot see the video: take the reference answer as the truth. "
    "Synonyms and paraphrases count as equal. Do not reward length or style. "
)
_SCORE = (
    "Give a whole number from 0 (not at all) to 5 (entirely). "
    'Reply with one JSON object and nothing else: {"score": <0 to 5>}'
)
_TASKS = {
    "qa": (
        "Does the model's answer mean the same as the reference answer? Say yes or no, and how well the two agree as a "
        "whole number from 0 (not at all) to 5 (entirely). Reply with one JSON object and nothing else: "
        '{"pred": "yes" or "no", "score": <0 to 5>}'
    ),
    "correctness": (
        "Judge facts alone: is what the model says true of the video as the reference describes it, with nothing "
        "misread or made up? " + _SCORE
    ),
    "detail": (
        "Judge completeness and specifics alone: does the model mention every main point of the reference, and is it "
        "as concrete, rather than general? " + _SCORE
    ),
    "context": (
        "Judge context alone: does the model grasp what the video as a whole is about, so that its answer fits the "
        "theme and setting of the reference? " + _SCORE
    ),
    "temporal": (
        "Judge time alone: does the model put events in the order, and place them at the moments, that the reference "
        "gives? " + _SCORE
    ),
    "consistency": (
        "The same thing was asked twice in different words. Judge agreement alone: do the two answers say the same, in "
        "line with the reference? " + _SCORE
    ),
}


def messages(request: JudgeRequest) -> Messages:
    """The request as an OpenAI-style conversation."""
    fields = [("Question", request.question), ("Reference answer", request.answer)]
    if request.protocol == "consistency":
        fields.insert(1, ("Question in other words", str(request.question2)))
        fields += [("Model's answer", request.prediction), ("Model's answer to the other", str(request.prediction2))]
    else:
        fields.append(("Model's answer", request.prediction))
    lines = [f"{name}: {text.strip()}" for name, text in fields]
    return [
        {"role": "system", "content": _ROLE + _TASKS[request.protocol]},
        {"role": "user", "content": "\n".join(lines)},
    ]


def prompt_hash(protocol: str) -> str:
    """Twelve hex digits that change whenever the wording of a protocol does."""
    other = {"question2": "<q2>", "prediction2": "<p2>"} if protocol == "consistency" else {}
    return digest(messages(JudgeRequest(protocol, "<q>", "<a>", "<p>", **other)))[:12]
