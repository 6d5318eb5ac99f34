"""The judge against a real HTTP server that misbehaves: no crash, no number from nothing, nothing asked twice."""

from __future__ import annotations

import json
import logging
import socket
import time

import pytest
from judge_server import JudgeServer

from dynimg_plugin.evaluation.judging import ASPECTS, Judge, JudgeRequest, summarise
from dynimg_plugin.evaluation.judging.judge import PATIENCE
from dynimg_plugin.evaluation.judging.protocols import PROTOCOLS, messages, prompt_hash
from dynimg_plugin.evaluation.judging.transport import base_url

SILENT = ["prose", "empty", "null", "no_choices", "not_json", "out_of_range", "think_unfinished", "contradiction"]
BROKEN = ["down", "http_400", "http_500", "http_429", "timeout"]


@pytest.fixture
def server():
    with JudgeServer() as running:
        yield running


def make_judge(server: JudgeServer, **arguments) -> Judge:
    return Judge(**{"url": server.url, "model": "m", "retries": 0, "timeout": 0.5, **arguments})


def questions(count: int = 6) -> list[JudgeRequest]:
    """Every third answer is wrong."""
    replies = ("a dog", "the dog", "a cat")
    return [JudgeRequest("qa", f"What is q{i}?", "dog", replies[i % 3], video=f"v{i // 2}") for i in range(count)]


def pair(protocol: str) -> JudgeRequest:
    other = {"question2": "Which?", "prediction2": "some dog"} if protocol == "consistency" else {}
    return JudgeRequest(protocol, "What?", "dog", "a dog", **other)


def test_verdicts_come_in_order_and_say_what_the_judge_said(server):
    verdicts = make_judge(server).verdicts(questions())
    assert [verdict.correct for verdict in verdicts] == [True, True, False] * 2
    assert [verdict.score for verdict in verdicts] == [5.0, 5.0, 1.0] * 2
    assert json.loads(verdicts[0].reply) == {"pred": "yes", "score": 5}


def test_the_judge_is_asked_at_temperature_zero_with_question_reference_and_answer(server):
    make_judge(server, model="some/judge", max_tokens=77).verdicts([pair("consistency")])
    payload = server.requests[0]
    assert (payload["model"], payload["temperature"], payload["max_tokens"]) == ("some/judge", 0.0, 77)
    said = payload["messages"][1]["content"]
    for part in ("What?", "Which?", "Reference answer: dog", "Model's answer: a dog", "other: some dog"):
        assert part in said


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_gets_a_verdict_from_its_own_prompt(server, protocol):
    verdict = make_judge(server).verdicts([pair(protocol)])[0]
    assert (verdict.score, verdict.correct) == (5.0, True if protocol == "qa" else None)
    assert len({messages(pair(aspect))[0]["content"] for aspect in ASPECTS}) == 5


@pytest.mark.parametrize("fault", [*SILENT, *BROKEN])
def test_one_faulty_reply_is_a_counted_failure_and_the_others_keep_their_verdicts(server, fault, tmp_path):
    server.fault = {"q1?": fault}
    asked = questions()
    verdicts = make_judge(server, cache_dir=tmp_path).verdicts(asked)
    assert [verdict.correct for verdict in verdicts] == [True, None, False, True, True, False]
    assert verdicts[1].failed
    assert verdicts[1].score is None
    summary = summarise(asked, verdicts)
    assert summary.metrics == {"accuracy": 60.0, "score": pytest.approx((5 + 1 + 5 + 5 + 1) / 5)}
    assert (summary.failed, summary.reasons) == (1, {verdicts[1].failed: 1})
    server.fault, before = None, server.count
    again = make_judge(server, cache_dir=tmp_path).verdicts(asked)
    assert [verdict.correct for verdict in again] == [True, True, False] * 2
    assert server.count - before == 1  # only the one without a verdict


@pytest.mark.parametrize("faults", [["prose"], ["null", "empty"], ["http_500"], ["http_429"], ["timeout"], ["down"]])
def test_a_passing_fault_is_retried(server, faults):
    server.fault = list(faults)
    verdict = make_judge(server, retries=2).verdicts(questions(1))[0]
    assert verdict.correct is True
    assert server.count == len(faults) + 1


def test_retries_have_an_end(server):
    server.fault = "prose"
    judge = make_judge(server, retries=2)
    assert judge.verdicts(questions(1))[0].failed == "no pred and score in the reply"
    assert server.count == judge.asked == 3


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/v1"


def test_a_server_that_is_down_is_named_and_given_up_soon(caplog):
    url = closed_port()
    judge = Judge(url, "m", retries=0, timeout=1)
    start = time.perf_counter()
    verdicts = judge.verdicts(questions(3000))
    assert time.perf_counter() - start < 20
    assert len(verdicts) == 3000
    assert all(verdict.failed and verdict.score is None and verdict.correct is None for verdict in verdicts)
    assert url in verdicts[0].failed
    assert "refused" in verdicts[0].failed
    assert judge.asked < PATIENCE + 8
    assert verdicts[-1].failed.startswith("not asked: 20 requests in a row without a verdict")
    assert "no more requests to the judge" in caplog.text
    assert summarise(questions(3000), verdicts).metrics == {"accuracy": None, "score": None}


@pytest.mark.parametrize("fault", ["http_401", "http_404"])
def test_a_refused_key_or_model_stops_at_once_and_shows_no_secret(server, fault, tmp_path, caplog, capfd):
    server.fault = fault  # the server repeats the key in its error
    judge = make_judge(server, api_key="sk-very-secret", cache_dir=tmp_path, concurrency=2)
    with caplog.at_level(logging.DEBUG, logger="dynimg_plugin"):
        verdicts = judge.verdicts(questions(50))
    assert server.keys[0] == "Bearer sk-very-secret"
    assert server.count <= 4
    assert all("HTTP 40" in verdict.failed for verdict in verdicts)
    written = "".join(path.read_text("utf-8") for path in tmp_path.rglob("*") if path.is_file())
    told = caplog.text + "".join(capfd.readouterr()) + written + json.dumps(judge.identity) + str(verdicts)
    assert "very-secret" not in told
    assert "Bearer ***" in told


def test_a_judge_that_never_gives_a_verdict_is_not_paid_for_thousands(server):
    server.fault = "prose"
    verdicts = make_judge(server, retries=1, timeout=30).verdicts(questions(1000))
    assert all(verdict.failed for verdict in verdicts)
    assert server.count <= 2 * (PATIENCE + 8)


def test_faults_now_and_then_do_not_end_the_judging(server):
    turns = iter(range(10**6))
    server.fault = lambda prompt: "http_400" if next(turns) % 2 else None
    verdicts = make_judge(server, concurrency=1).verdicts(questions(3 * PATIENCE))
    assert sum(verdict.failed is None for verdict in verdicts) == 3 * PATIENCE / 2


def test_requests_run_side_by_side_up_to_the_limit():
    with JudgeServer(delay=0.2) as server:
        start = time.perf_counter()
        make_judge(server, concurrency=5, timeout=5).verdicts(questions(25))
        assert time.perf_counter() - start < 0.7 * 25 * 0.2
        assert 3 <= server.most_at_once <= 5


def test_nothing_is_asked_twice_in_a_run(server):
    judge = make_judge(server)
    assert judge.verdicts(questions(4) * 3) == judge.verdicts(questions(4)) * 3
    assert server.count == 4
    server.fault = "prose"
    failed = judge.verdicts([pair("detail")])
    assert judge.verdicts([pair("detail")]) == failed  # several metrics see the same failure
    assert server.count == 5


def test_replies_are_kept_by_prompt_and_model(server, tmp_path):
    first = make_judge(server, cache_dir=tmp_path).verdicts(questions())
    assert make_judge(server, cache_dir=tmp_path).verdicts(questions()) == first
    assert server.count == 6
    make_judge(server, cache_dir=tmp_path, model="other/judge").verdicts(questions())
    assert server.count == 12
    make_judge(server, cache_dir=tmp_path).verdicts([pair("qa")])
    assert server.count == 13
    assert len(list(tmp_path.iterdir())) == 2


def test_a_torn_line_costs_one_question_and_spoils_no_other(server, tmp_path, caplog):
    make_judge(server, cache_dir=tmp_path).verdicts(questions())
    kept = next(tmp_path.iterdir())
    kept.write_bytes(kept.read_bytes()[:-7])
    verdicts = make_judge(server, cache_dir=tmp_path).verdicts(questions())
    assert [verdict.correct for verdict in verdicts] == [True, True, False] * 2
    assert "1 broken line(s) skipped" in caplog.text
    make_judge(server, cache_dir=tmp_path).verdicts(questions())
    assert server.count == 7


def test_a_kept_reply_that_is_no_verdict_is_asked_for_again(server, tmp_path):
    make_judge(server, cache_dir=tmp_path).verdicts(questions(1))
    kept = next(tmp_path.iterdir())
    entry = json.loads(kept.read_text("utf-8"))
    kept.write_text(json.dumps({**entry, "reply": "hm"}) + "\n" + "[1]\n", "utf-8")
    assert make_judge(server, cache_dir=tmp_path).verdicts(questions(1))[0].correct is True
    assert server.count == 2


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/chat/completions", "http://localhost:8000/v1"),
        ("https://host/openai/v1/chat/completions/", "https://host/openai/v1"),
        (" https://api.openai.com/v1 ", "https://api.openai.com/v1"),
    ],
)
def test_both_readings_of_an_address_mean_the_same(url, base):
    assert base_url(url) == base


def test_both_readings_reach_the_server(server):
    assert make_judge(server, url=f"{server.url}/chat/completions").verdicts(questions(1))[0].correct
    assert make_judge(server, url=server.url.removesuffix("/v1")).verdicts(questions(1))[0].correct


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "", "http://"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="no http"):
        Judge(url, "m")


@pytest.mark.parametrize("arguments", [{"concurrency": 0}, {"timeout": 0}, {"retries": -1}, {"model": ""}])
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="are allowed"):
        Judge(**{"url": "http://host", "model": "m", **arguments})


def test_the_identity_says_who_judged_and_hides_secrets(server):
    url = server.url.replace("http://", "http://me:password@") + "?key=hidden"
    judge = Judge(url, "m", api_key="sk-secret")
    assert "password" not in str(judge.identity)
    assert "hidden" not in str(judge.identity)
    judge = make_judge(server)
    judge.verdicts(questions(1))
    identity = judge.identity
    assert (identity["model"], identity["url"], identity["served_by"]) == ("m", server.url, ["loopback-1"])
    assert identity["sampling"]["temperature"] == 0.0
    assert identity["prompts"] == {protocol: prompt_hash(protocol) for protocol in PROTOCOLS}
    assert len(set(identity["prompts"].values())) == 6
    assert identity["date"] == time.strftime("%Y-%m-%d", time.gmtime())


def test_the_date_is_that_of_the_replies_not_of_the_rerun(server, tmp_path):
    make_judge(server, cache_dir=tmp_path).verdicts(questions(2))
    kept = next(tmp_path.iterdir())
    first, second = map(json.loads, kept.read_text("utf-8").splitlines())
    first["date"], second["date"] = "2026-01-01", "2026-01-03"
    kept.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n", "utf-8")
    judge = make_judge(server, cache_dir=tmp_path)
    judge.verdicts(questions(2))
    assert judge.identity["date"] == "2026-01-01 to 2026-01-03"


def test_the_key_comes_from_the_argument_or_the_environment(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    make_judge(server).verdicts(questions(1))
    make_judge(server, api_key="given").verdicts(questions(1))
    monkeypatch.delenv("OPENAI_API_KEY")
    make_judge(server).verdicts(questions(1))
    assert server.keys == ["Bearer from-environment", "Bearer given", "Bearer none"]


def test_a_proxy_does_not_stand_between_us_and_this_machine(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, closed_port())
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert make_judge(server).verdicts(questions(1))[0].correct is True


def test_problem_tells_whether_the_judge_works(server):
    judge = make_judge(server)
    assert judge.problem() is None
    server.fault = "prose"
    assert judge.problem() == "no pred and score in the reply"
    server.fault = "http_404"
    assert "HTTP 404" in judge.problem()
    assert "not reached" in Judge(closed_port(), "m", retries=0).problem()
