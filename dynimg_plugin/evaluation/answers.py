"""Reading a model's free text: which option it names, and how close it is to the answer. No judge, no guesses."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

LETTERS = string.ascii_uppercase
ARTICLES = ("a", "an", "the")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)}


def normalise(text: str) -> str:
    """Lower case, without punctuation and articles, numbers up to ten as digits: "The red circle." is "red circle"."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(DIGITS.get(word, word) for word in words if word not in ARTICLES)


def exact_match(reply: str, answer: str) -> bool:
    """Whether a reply is the answer after `normalise`; an empty reply never is."""
    return normalise(reply) == normalise(answer) != ""


def contained(reply: str, answer: str) -> bool:
    """Whether the answer's words stand in the reply one after the other: "red" in "A red car", not in "Fred"."""
    wanted = normalise(answer)
    return wanted != "" and f" {wanted} " in f" {normalise(reply)} "


def word_f1(reply: str, answer: str) -> float:
    """Harmonic mean of the share of the reply's words that the answer has, and the other way round; 0 to 1."""
    given, wanted = Counter(normalise(reply).split()), Counter(normalise(answer).split())
    common = (given & wanted).total()
    return 2 * common / (given.total() + wanted.total()) if common else 0.0


def read_letter(reply: str, options: Sequence[str]) -> str | None:
    """The letter that a reply names, or None where it names none.

    Read are a letter alone ("B", "b", "(B)", "B."), a letter and a text ("B) left", "B: it goes left"), an option's own
    text, and each of these behind "answer is", "answer:", "option is" or "option:". "It is a dog" names no letter, and
    neither does a reply that contradicts itself ("B) left" where left is C, "(A) or (B)").
    """
    letters = LETTERS[: len(options)]
    texts = {normalise(option): letter for letter, option in zip(letters, options, strict=True)}
    if normalise(reply) in texts:
        return texts[normalise(reply)]
    lead = r"^.*\b(?:answer|option)(?:(?: is)?:|(?: is)?(?=\s))\s*"
    reply = re.sub(lead, "", reply, flags=re.IGNORECASE | re.DOTALL).strip("*_`'\" \n\t")
    if normalise(reply) in texts:
        return texts[normalise(reply)]
    if alone := re.fullmatch(rf"\(?([{letters}])[).:]*", reply, flags=re.IGNORECASE):
        return alone[1].upper()
    marked = re.match(rf"\(([{letters}])\)|([{letters}])([).:\n]|(?= ))", reply)
    if marked is None:
        return None
    letter, rest = marked[1] or marked[2], reply[marked.end() :]
    if normalise(rest) in texts:
        return letter if texts[normalise(rest)] == letter else None
    blank = marked[3] == ""  # "A dog": an article, or at least no sure letter
    return None if blank or re.search(rf"\([{letters}]\)|\b[{letters}]\)", rest) else letter
