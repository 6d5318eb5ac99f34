"""From a judge's reply to a verdict: tolerant of form, strict about content. What cannot be read is no verdict."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

YES = {"yes", "y", "true", "correct", "right"}
NO = {"no", "n", "false", "incorrect", "wrong"}
FIELDS = {"pred": "pred", "prediction": "pred", "correct": "pred", "score": "score"}

_THINKING = re.compile(r"<(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_THOUGHT = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_LABELLED = re.compile(
    r"\b(pred|prediction|correct|score)[\"'*`]*\s*[:=][\s\"'*`]*([a-z]+|-?\d+(?:\.\d+)?)", re.IGNORECASE
)
_NUMBER = re.compile(r"(-?\d+(?:\.\d+)?)(?:\s*/\s*5)?")


@dataclass(frozen=True)
class Verdict:
    """What the judge said of one request.

    Attributes:
        correct: yes or no under protocol "qa", else None.
        score: 0 to 5; None where the judge failed.
        failed: why there is no verdict, or None.
        reply: the judge's words.
    """

    correct: bool | None
    score: float | None
    failed: str | None = None
    reply: str | None = None


def failure(reason: str, reply: str | None = None) -> Verdict:
    """No verdict, and why."""
    return Verdict(None, None, reason, reply)


def read(reply: str | None, protocol: str) -> Verdict:
    """The verdict in a reply, `failed` where there is none.

    Read are JSON and Python dicts, bare, inside prose or code fences, after thinking tags, and `pred: yes, score: 4`;
    yes, no, true, false, correct, incorrect, right, wrong; whole and broken numbers, as numbers or text, also "4/5".
    """
    if reply is None or not reply.strip():
        return failure("empty reply", reply)
    text = _THOUGHT.split(reply)[-1]
    if _THINKING.search(text):
        return failure("the judge never finished thinking; give it more tokens", reply)
    wanted = ("pred", "score") if protocol == "qa" else ("score",)
    try:
        fields = _fields(text, wanted)
        correct = _truth(fields["pred"]) if protocol == "qa" else None
        return Verdict(correct, _score(fields["score"]), None, reply)
    except ValueError as error:
        return failure(str(error), reply)


def _fields(text: str, wanted: tuple[str, ...]) -> dict[str, Any]:
    """The wanted fields of the dicts in the text or, without any, of its `name: value` pairs; all must agree."""
    found = [fields for fields in map(_known, _dicts(text)) if all(name in fields for name in wanted)]
    if not found:
        found = _labelled(text, wanted)
    if not found:
        raise ValueError(f"no {' and '.join(wanted)} in the reply")
    if any(str(fields[name]) != str(found[0][name]) for fields in found for name in wanted):
        raise ValueError("the reply contradicts itself")
    return found[0]


def _known(fields: dict[Any, Any]) -> dict[str, Any]:
    named = {str(name).strip().lower(): value for name, value in fields.items()}
    return {FIELDS[name]: value for name, value in named.items() if name in FIELDS}


def _dicts(text: str) -> list[dict[Any, Any]]:
    """Every JSON object or Python dict that lies flat in the text."""
    found = []
    for span in re.findall(r"\{[^{}]*\}", text):
        for parse in (json.loads, ast.literal_eval):
            try:
                found.append(parse(span))
                break
            except (ValueError, SyntaxError):
                continue
    return [fields for fields in found if isinstance(fields, dict)]


def _labelled(text: str, wanted: tuple[str, ...]) -> list[dict[str, Any]]:
    values: dict[str, list[str]] = {name: [] for name in wanted}
    for name, value in _LABELLED.findall(text):
        values.get(FIELDS[name.lower()], []).append(value)
    if not all(values.values()):
        return []
    if any(len(set(said)) > 1 for said in values.values()):
        raise ValueError("the reply contradicts itself")
    return [{name: said[0] for name, said in values.items()}]


def _truth(value: Any) -> bool:
    word = str(value).strip().strip(".!'\"").lower()
    if word not in YES | NO:
        raise ValueError(f"pred is {value!r}, neither yes nor no")
    return word in YES


def _score(value: Any) -> float:
    number = _NUMBER.fullmatch(str(value).strip())
    if isinstance(value, bool) or number is None:
        raise ValueError(f"score is {value!r}, no number")
    if not 0 <= float(number[1]) <= 5:
        raise ValueError(f"score is {value!r}, out of 0 to 5")
    return float(number[1])
