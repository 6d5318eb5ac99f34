"""How free text is compared with an answer."""

from __future__ import annotations

import pytest

from dynimg_plugin.evaluation.answers import contained, exact_match, normalise, read_letter, word_f1
from dynimg_plugin.evaluation.prompts import find_prompt
from dynimg_plugin.evaluation.rows import Row

OPTIONS = ["moves left", "moves right", "no change", "it stops"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Red circle.", "red circle"),
        ("two dogs", "2 dogs"),
        ("TEN", "10"),
        ("a", ""),
        ("It's  a man's", "it s man s"),
        ("", ""),
    ],
)
def test_normalisation(text, normal):
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("reply", "answer", "exact", "within"),
    [
        ("Yes.", "yes", True, True),
        ("A red car drives off", "car", False, True),
        ("Fred", "red", False, False),
        ("red and blue", "red blue", False, False),
        ("three", "3", True, True),
        ("", "", False, False),
        ("the", "a", False, False),
        ("", "yes", False, False),
    ],
)
def test_exact_match_and_contained_answer(reply, answer, exact, within):
    assert (exact_match(reply, answer), contained(reply, answer)) == (exact, within)


def test_word_f1_counts_common_words_both_ways():
    assert word_f1("a man runs", "the man walks his dog") == pytest.approx(2 * (1 / 2) * (1 / 4) / (1 / 2 + 1 / 4))
    assert word_f1("dog dog", "dog") == pytest.approx(2 / 3)
    assert (word_f1("", "dog"), word_f1("same words", "words, same")) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"), ("(c)", "C"), ("B) moves right", "B"), ("Best option: (D) it stops", "D"), ("moves left.", "A"),
        ("The correct option is: B", "B"), ("Answer: (C)", "C"), ("C. no change at all", "C"), ("option B", "B"),
        ("It is a dog", None), ("A dog runs", None), ("B) moves left", None), ("(A) or (B)", None), ("", None),
        ("E", None), ("He moves a box to option C later", None), ("I cannot tell", None),
    ],
)  # fmt: skip
def test_letters_are_read_strictly(reply, letter):
    assert read_letter(reply, OPTIONS) == letter


@pytest.mark.parametrize(
    ("reply", "options", "letter"),
    [
        ("B) a", ["b", "a", "c"], "B"), ("B", ["b", "a", "c"], "B"), ("C) a", ["v", "s", "a"], "C"),
        ("", ["a", "the", "c"], None), ("A) red", ["red", "The red.", "blue"], "A"), ("red", ["red", "Red"], None),
        ("2", ["one", "two"], "B"), ("A cat.", ["a dog", "the cat"], "B"), ("B) the end", ["end", "a"], None),
    ],
)  # fmt: skip
def test_options_that_are_letters_articles_or_alike_do_not_mislead(reply, options, letter):
    assert read_letter(reply, options) == letter


def test_more_than_five_options_have_letters():
    assert read_letter("F", [*OPTIONS, "fifth", "sixth"]) == "F"


def row(**more):
    return Row("1", "v.mp4", "v", ["who is it"], "man", **{"protocols": ["qa"], **more})


def test_prompts_follow_their_variant():
    choice = row(protocols=[], options=["left", "man"])
    assert find_prompt("pllava", choice).question(choice) == (
        "Question: who is it\nOptions:\n(A) left\n(B) man\nOnly give the best option."
    )
    assert find_prompt("lmms-eval", choice).question(choice) == (
        "Question:who is it\nOption:\n(A) left\n(B) man\nOnly give the best option.\n"
    )
    system, user, begun = find_prompt("pllava", choice).messages(choice)
    assert (system["role"], user["role"], begun["role"]) == ("system", "user", "assistant")
    assert begun["content"] == [{"type": "text", "text": "Best option:("}]
    assert user["content"][0] == {"type": "video", "url": "v.mp4", "start_time": None, "end_time": None}
    assert find_prompt("lmms-eval", row()).question(row()).startswith("Who is it? Answer")
    asked = Row("1", "v", "v", ["what is HE doing?"], "y", ["qa"])
    assert find_prompt("lmms-eval", asked).question(asked).startswith("What is he doing? Answer")
    aspects = row(protocols=["temporal"])
    assert find_prompt("lmms-eval", aspects).max_new_tokens == 1024
    with pytest.raises(ValueError, match="prompts='x' is not known; allowed: pllava, lmms-eval"):
        find_prompt("x", row())


def test_braces_in_a_question_stay():
    assert "{x}" in find_prompt("pllava", row()).question(Row("1", "v", "v", ["what is {x}"], "y", ["qa"]))
