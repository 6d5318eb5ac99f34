"""The judge of open answers: protocol, transport, reading of replies, cache, and the numbers that follow."""

from dynimg_plugin.evaluation.judging.judge import Judge
from dynimg_plugin.evaluation.judging.protocols import ASPECTS, PROTOCOLS, JudgeRequest
from dynimg_plugin.evaluation.judging.reading import Verdict
from dynimg_plugin.evaluation.judging.scores import MAX_FAILED, JudgeFailed, Scores, aspect_averages, bootstrap, score

__all__ = [
    "ASPECTS",
    "MAX_FAILED",
    "PROTOCOLS",
    "Judge",
    "JudgeFailed",
    "JudgeRequest",
    "Scores",
    "Verdict",
    "aspect_averages",
    "bootstrap",
    "score",
]
