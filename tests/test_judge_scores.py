"""Numbers from verdicts, compared with those worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dynimg_plugin.evaluation.judging import ASPECTS, JudgeFailed, JudgeRequest, Verdict, bootstrap, mean, summarise
from dynimg_plugin.evaluation.judging.reading import failure


def qa(video: str = "v") -> JudgeRequest:
    return JudgeRequest("qa", "what?", "dog", "dog", video=video)


def aspect(protocol: str, video: str = "v") -> JudgeRequest:
    pair = {"question2": "which?", "prediction2": "dog"} if protocol == "consistency" else {}
    return JudgeRequest(protocol, "what?", "dog", "dog", video=video, **pair)


def test_accuracy_and_score_leave_out_what_was_not_judged():
    verdicts = [Verdict(True, 5.0), Verdict(False, 2.0), failure("down"), Verdict(True, 4.0)]
    summary = summarise([qa()] * 4, verdicts)
    assert summary.metrics == {"accuracy": pytest.approx(200 / 3), "score": pytest.approx(11 / 3)}
    assert (summary.total, summary.failed, summary.failed_share, summary.reasons) == (4, 1, 0.25, {"down": 1})


def test_nothing_judged_is_no_number_rather_than_zero():
    summary = summarise([qa()] * 2, [failure("down")] * 2)
    assert summary.metrics == {"accuracy": None, "score": None}
    assert summary.intervals == {"accuracy": None, "score": None}
    assert summary.failed_share == 1.0
    assert summarise([], []).failed_share == 0.0


def test_both_averages_of_video_chatgpt():
    """Three generic aspects on four questions, temporal and consistency on one, as 1996 to 499 in the benchmark."""
    points = {"correctness": [4, 4, 4, 4], "detail": [3, 3, 3, 3], "context": [4, 4, 4, 0], "temporal": [1]}
    points["consistency"] = [2]
    requests = [aspect(name) for name, scores in points.items() for _ in scores]
    summary = summarise(requests, [Verdict(None, float(point)) for scores in points.values() for point in scores])
    assert summary.metrics["context"] == 3.0
    assert summary.metrics["aspect_mean"] == pytest.approx((4 + 3 + 3 + 1 + 2) / 5)
    assert summary.metrics["per_judgement"] == pytest.approx((16 + 12 + 12 + 1 + 2) / 14)


def test_the_averages_need_all_five_aspects():
    requests = [aspect(name) for name in ASPECTS[:4]]
    summary = summarise(requests, [Verdict(None, 4.0)] * 4)
    assert summary.metrics["temporal"] == 4.0
    assert summary.metrics["aspect_mean"] is summary.metrics["per_judgement"] is None
    unjudged = [Verdict(None, 4.0)] * 4 + [failure("down")]
    assert summarise([*requests, aspect("consistency")], unjudged).metrics["aspect_mean"] is None


@pytest.mark.parametrize(("failed", "fine"), [(0, True), (1, True), (2, False), (100, False)])
def test_more_than_one_percent_failed_is_an_error(failed, fine):
    verdicts = [failure("down")] * failed + [Verdict(True, 5.0)] * (100 - failed)
    summary = summarise([qa()] * 100, verdicts)
    if fine:
        summary.check()
    else:
        with pytest.raises(JudgeFailed, match=rf"{failed} of 100 requests have no verdict.*most often: down"):
            summary.check()


def test_a_mean_of_groups_weighs_groups_alike():
    assert mean([100, 100, 100, 0], ["a", "a", "a", "b"]) == 50
    assert mean([100, 100, 100, 0], ["a"] * 4) == 75
    assert mean([], []) is None


def test_intervals_hold_the_mean_and_know_that_questions_of_a_video_hang_together():
    values = [100.0 * (video % 2) for video in range(40) for _ in range(10)]
    clustered = bootstrap(values, [f"v{n // 10}" for n in range(400)], [""] * 400)
    alone = bootstrap(values, [f"v{n}" for n in range(400)], [""] * 400)
    assert clustered[0] < alone[0] < 50 < alone[1] < clustered[1]
    width = (clustered[1] - clustered[0]) / (alone[1] - alone[0])
    assert 2.5 < width < 4.0  # sqrt(10) = 3.2 times as wide: 40 independent answers, not 400


def test_intervals_agree_with_the_normal_approximation():
    values = np.random.default_rng(1).normal(3.0, 1.0, 500)
    low, high = bootstrap(list(values), [str(n) for n in range(500)], [""] * 500, resamples=4000)
    error = 1.96 * values.std() / np.sqrt(500)
    assert low == pytest.approx(values.mean() - error, abs=0.01)
    assert high == pytest.approx(values.mean() + error, abs=0.01)


def test_intervals_are_repeatable_and_do_not_depend_on_the_order():
    values, videos = [0.0, 100.0, 100.0, 0.0, 100.0], ["a", "b", "c", "a", "d"]
    first = bootstrap(values, videos, [""] * 5)
    assert first == bootstrap(values, videos, [""] * 5) == bootstrap(values[::-1], videos[::-1], [""] * 5)
    assert bootstrap(values, videos, [""] * 5, seed=1, resamples=100) != first
    assert bootstrap([1.0, 2.0], ["one", "one"], ["", ""]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "quality"}, "unknown judge protocol 'quality'; known: qa, correctness"),
        ({"protocol": "consistency"}, "consistency needs both"),
        ({"protocol": "qa", "question2": "which?", "prediction2": "cat"}, "the other protocols neither"),
        ({"protocol": "consistency", "question2": "which?"}, "consistency needs both"),
    ],
)
def test_requests_check_themselves(arguments, message):
    with pytest.raises(ValueError, match=message):
        JudgeRequest(**{"question": "what?", "answer": "dog", "prediction": "dog", **arguments})


@pytest.mark.parametrize("request_", [qa(), aspect("consistency")])
def test_requests_survive_json(request_):
    assert JudgeRequest(**request_.to_dict()) == request_
