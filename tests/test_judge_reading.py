"""A judge's replies: every form that means a verdict is read, everything else is a failure with a reason."""

from __future__ import annotations

import re

import pytest
from judge_server import REPLIES

from dynimg_plugin.evaluation.judging.reading import read

YES_4 = (
    *("prose_around", "python_dict", "fenced", "think", "think_open_end"),
    *("boolean", "python_boolean", "word_correct", "text_score", "labelled"),
)


@pytest.mark.parametrize("form", YES_4)
def test_forms_that_mean_yes_and_four(form):
    verdict = read(REPLIES[form], "qa")
    assert (verdict.correct, verdict.score, verdict.failed) == (True, 4.0, None)
    assert verdict.reply == REPLIES[form]


@pytest.mark.parametrize(
    ("reply", "correct", "score"),
    [
        ('{"pred": "yes", "score": 4.8}', True, 4.8),
        ("{'pred': 'no', 'score': 0}", False, 0.0),
        ('{"pred": "No.", "score": "0.0"}', False, 0.0),
        ('{"pred": "incorrect", "score": "1/5"}', False, 1.0),
        ('{"Prediction": "TRUE", "Score": 5}', True, 5.0),
        ('{"correct": false, "score": 2}', False, 2.0),
        ('{"verdict": {"pred": "yes", "score": 3}, "why": "same colour"}', True, 3.0),
        ('{"pred": "yes", "score": 5, "reason": "both say {red}"}', True, 5.0),
        ("**pred:** no, **score:** 2", False, 2.0),
        ('{"pred": "yes", "score": 3}\n{"pred": "yes", "score": 3}', True, 3.0),
        ('<Thinking>score: 0</Thinking> {"pred": "yes", "score": 3}', True, 3.0),
        ("{pred: yes, score: 4,}", True, 4.0),
    ],
)
def test_other_forms(reply, correct, score):
    verdict = read(reply, "qa")
    assert (verdict.correct, verdict.score, verdict.failed) == (correct, score, None)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (None, "empty reply"),
        ("  \n", "empty reply"),
        (REPLIES["prose"], "no pred and score"),
        (REPLIES["think_unfinished"], "never finished thinking"),
        (REPLIES["out_of_range"], "score is 7, out of 0 to 5"),
        (REPLIES["negative"], "score is -1, out of 0 to 5"),
        (REPLIES["no_score"], "no pred and score"),
        (REPLIES["perhaps"], "neither yes nor no"),
        (REPLIES["contradiction"], "contradicts itself"),
        ("pred: yes, score: 4; or rather pred: no, score: 1", "contradicts itself"),
        ("pred: not correct, score: 4", "neither yes nor no"),
        ('{"pred": "yes", "score": true}', "score is True, no number"),
        ('{"pred": "yes", "score": NaN}', "score is nan, no number"),
        ('{"pred": "yes", "score": "five"}', "no number"),
        ('{"pred": "yes", "score": 10e1}', "no number|out of 0 to 5"),
        ('{"pred": "yes", "score": null}', "no number"),
        ('{"pred": "yes or no", "score": 4}', "neither yes nor no"),
        ('{"pred": ["yes"], "score": 4}', "neither yes nor no"),
    ],
)
def test_what_is_no_verdict_fails_with_a_reason_and_no_score(reply, reason):
    verdict = read(reply, "qa")
    assert verdict.correct is None
    assert verdict.score is None
    assert verdict.failed is not None
    assert re.search(reason, verdict.failed)


@pytest.mark.parametrize("aspect", ["correctness", "detail", "context", "temporal", "consistency"])
def test_aspects_need_a_score_alone(aspect):
    assert read('{"score": 3}', aspect).score == 3.0
    assert read('{"pred": "maybe", "score": 3}', aspect).correct is None
    assert read('{"pred": "yes"}', aspect).failed == "no score in the reply"


def test_a_long_adversarial_reply_is_read_in_no_time():
    assert read("{" * 20000 + "pred" * 5000 + "}" * 20000, "qa").failed
    assert read("<think>" * 5000, "qa").failed
