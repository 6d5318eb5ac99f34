"""Judge: many requests in, as many verdicts out, in order; nothing asked twice, nothing guessed."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from tqdm import tqdm

from dynimg_plugin.evaluation.judging.cache import Entry, ReplyCache
from dynimg_plugin.evaluation.judging.protocols import PROTOCOLS, JudgeRequest, messages, prompt_hash
from dynimg_plugin.evaluation.judging.reading import Verdict, failure, read
from dynimg_plugin.evaluation.judging.transport import NoReply, Transport, public_url, quiet

logger = logging.getLogger(__name__)
PATIENCE = 20  # requests in a row without a verdict, after which the judge is not asked any more


class Judge:
    """A language model behind an OpenAI-compatible server, asked at temperature 0.

    Replies that could be read are kept on disk; failures are remembered by this object alone, so that all metrics of a
    run see the same ones and a new run tries again. When the server refuses the key or the model, or 20 requests in a
    row come to no verdict, the rest is not asked any more and counts as failed: nobody pays for 13,000 useless replies.

    Args:
        url: `http://host:8000`, `.../v1` or `.../v1/chat/completions`.
        model: the name under which the server knows the judge.
        api_key: by default the environment's OPENAI_API_KEY; never printed or stored.
        cache_dir: folder of the replies; None keeps them in memory.
        concurrency: requests under way at a time.
        timeout: seconds that one attempt may take.
        retries: further attempts at a request, after faults of the server and after replies that cannot be read.
        max_tokens: length of a reply at most; judges that think first need room.

    Attributes:
        asked: requests sent so far, without the attempts that the client repeats by itself.

    Raises:
        ValueError: an address that is none, or numbers out of range.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 3,
        max_tokens: int = 1024,
    ) -> None:
        if not model or concurrency < 1 or timeout <= 0 or retries < 0 or max_tokens < 1:
            raise ValueError(
                f"judge model={model!r}, concurrency={concurrency}, timeout={timeout}, retries={retries}, "
                f"max_tokens={max_tokens}: a name, at least 1, above 0, at least 0 and at least 1 are allowed"
            )
        self.model = model
        self.asked = 0
        self._url = public_url(url)
        self._transport = Transport(url, model, api_key, timeout=timeout, retries=retries, max_tokens=max_tokens)
        self._cache = ReplyCache(cache_dir, model)
        self._concurrency = concurrency
        self._retries = retries
        self._failures: dict[str, Verdict] = {}
        self._used: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._in_vain = 0
        self._gone: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Who judged: model, address without secrets, sampling, prompt hashes, and of the last verdicts() the day(s) on
        which the judge replied and the names that the server gave it."""
        dates = sorted({date for date, _ in self._used}) or [_today()]
        return {
            "model": self.model,
            "url": self._url,
            "sampling": self._transport.sampling,
            "prompts": {protocol: prompt_hash(protocol) for protocol in PROTOCOLS},
            "date": dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
            "served_by": sorted({name for _, name in self._used}),
        }

    def verdicts(self, requests: Sequence[JudgeRequest]) -> list[Verdict]:
        """One verdict per request, in order. Never raises for what the judge does: see Verdict.failed."""
        self._used = set()
        keys = [self._cache.key(messages(request)) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if not self._known(key, request)}
        if missing:
            self._ask_all(missing)
        found = [self._recall(key, request) for key, request in zip(keys, requests, strict=True)]
        failed = sum(verdict.failed is not None for verdict in found)
        if failed:
            logger.warning("%d of %d requests have no verdict (judge_failed)", failed, len(found))
        return found

    def problem(self) -> str | None:
        """Ask for one trivial verdict, past the cache: None when the judge works, else what is wrong."""
        request = JudgeRequest("qa", "What colour is the ball?", "red", "red")
        try:
            with quiet():
                return read(self._transport.ask(messages(request))[0], "qa").failed
        except NoReply as error:
            return str(error)

    def _known(self, key: str, request: JudgeRequest) -> bool:
        entry = self._cache.get(key)
        return key in self._failures or (entry is not None and read(entry.reply, request.protocol).failed is None)

    def _ask_all(self, missing: dict[str, JudgeRequest]) -> None:
        pool = ThreadPoolExecutor(self._concurrency, "dynimg-judge")
        with quiet():
            try:
                work = pool.map(self._judge, missing.keys(), missing.values())
                for _ in tqdm(work, "judging", len(missing), unit="request", disable=None):
                    pass
            finally:
                pool.shutdown(cancel_futures=True)

    def _judge(self, key: str, request: JudgeRequest) -> None:
        """Ask for one verdict and keep what came of it."""
        if self._gone is not None:
            self._failures[key] = failure(f"not asked: {self._gone}")
            return
        try:
            verdict = self._ask(key, request)
        except NoReply as error:
            verdict = failure(str(error))
            if error.hopeless:
                self._give_up(str(error))
        if verdict.failed is not None:
            self._failures[key] = verdict
        with self._lock:
            self._in_vain = self._in_vain + 1 if verdict.failed else 0
            if self._in_vain == PATIENCE:
                self._give_up(f"{PATIENCE} requests in a row without a verdict, the last because: {verdict.failed}")

    def _ask(self, key: str, request: JudgeRequest) -> Verdict:
        """Ask until a reply can be read, at most 1 + retries times; that reply is kept on disk."""
        for attempt in range(1 + self._retries):
            with self._lock:
                self.asked += 1
            try:
                reply, served_by = self._transport.ask(messages(request))
            except NoReply as error:
                if error.again and attempt < self._retries:
                    continue
                raise
            verdict = read(reply, request.protocol)
            if verdict.failed is None:
                self._cache.put(key, Entry(reply, served_by, _today()))
                break
        return verdict

    def _give_up(self, reason: str) -> None:
        if self._gone is None:
            self._gone = reason
            logger.error("no more requests to the judge: %s", reason)

    def _recall(self, key: str, request: JudgeRequest) -> Verdict:
        entry = self._cache.get(key)
        if entry is None or key in self._failures:
            return self._failures[key]
        self._used.add((entry.date, entry.served_by))
        return read(entry.reply, request.protocol)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
