"""The judge of open answers: protocol, transport, reading of replies, cache, and the numbers that follow.

judge = Judge(url="http://localhost:8000/v1", model="Qwen/Qwen3-8B", cache_dir="judge_cache")
requests = [JudgeRequest("qa", question="what runs?", answer="dog", prediction="A dog.", video="vid1")]
summary = summarise(requests, judge.verdicts(requests))
summary.metrics, summary.failed_share
"""

from dynimg_plugin.evaluation.judging.judge import Judge
from dynimg_plugin.evaluation.judging.protocols import ASPECTS, PROTOCOLS, JudgeRequest
from dynimg_plugin.evaluation.judging.reading import Verdict
from dynimg_plugin.evaluation.judging.scores import (
    ASPECT_METRICS,
    MAX_FAILED,
    QA_METRICS,
    JudgeFailed,
    Summary,
    bootstrap,
    mean,
    summarise,
)

__all__ = [
    "ASPECTS",
    "ASPECT_METRICS",
    "MAX_FAILED",
    "PROTOCOLS",
    "QA_METRICS",
    "Judge",
    "JudgeFailed",
    "JudgeRequest",
    "Summary",
    "Verdict",
    "bootstrap",
    "mean",
    "summarise",
]
