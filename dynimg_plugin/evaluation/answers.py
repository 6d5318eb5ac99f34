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
    return " ".join(word for word in _words(text) if word not in ARTICLES)


def _words(text: str) -> list[str]:
    return [DIGITS.get(word, word) for word in re.sub(r"[^\w\s]", " ", text.lower()).split()]


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
    neither does a reply that contradicts itself ("B) left" where left is C, "(A) or (B)"). A letter alone is the
    option's letter even where options are letters themselves, as in MVBench's order of characters.
    """
    letters = LETTERS[: len(options)]
    plain = [_option_text(option) for option in options]
    texts = {text: letter for letter, text in zip(letters, plain, strict=True) if text and plain.count(text) == 1}
    lead = r"^.*\b(?:answer|option)(?:(?: is)?:|(?: is)?(?=\s))\s*"
    said = re.sub(lead, "", reply, flags=re.IGNORECASE | re.DOTALL).strip("*_`'\" \n\t")
    if alone := re.fullmatch(rf"\(?([{letters}])[).:]*", said, flags=re.IGNORECASE):
        return alone[1].upper()
    for text in (_option_text(reply), _option_text(said)):
        if text in texts:
            return texts[text]
    marked = re.match(rf"\(([{letters}])\)|([{letters}])([).:\n]|(?= ))", said)
    if marked is None:
        return None
    letter, rest = marked[1] or marked[2], said[marked.end() :]
    if _option_text(rest) in texts:
        return letter if texts[_option_text(rest)] == letter else None
    blank = marked[3] == ""  # "A dog": an article, or at least no sure letter
    return None if blank or re.search(rf"\([{letters}]\)|\b[{letters}]\)", rest) else letter


def _option_text(text: str) -> str:
    """Like `normalise`, but of articles only a leading one goes: "a" is an option, and "B) a" is not "b"."""
    words = _words(text)
    return " ".join(words[1:] if len(words) > 1 and words[0] in ARTICLES else words)
