"""The way to the judge: lmms-eval's OpenAI provider, its address, key, time-out and retries given by the caller."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import openai
from lmms_eval.llm_judge import Request, ServerConfig
from lmms_eval.llm_judge.providers.openai import OpenAIProvider, build_sampling_kwargs
from loguru import logger as lmms_eval_logger

from dynimg_plugin.evaluation.judging.protocols import Messages

HOPELESS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)  # asking again is no use
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class NoReply(Exception):
    """The server gave no text.

    Attributes:
        hopeless: it will refuse every other request as well.
        again: it answered, though without text; asking again may help.
    """

    def __init__(self, reason: str, *, hopeless: bool = False, again: bool = False) -> None:
        super().__init__(reason)
        self.hopeless = hopeless
        self.again = again


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the provider's two lines per failure: they repeat what servers say, sometimes the key."""
    lmms_eval_logger.disable(OpenAIProvider.__module__)
    try:
        yield
    finally:
        lmms_eval_logger.enable(OpenAIProvider.__module__)


def base_url(url: str) -> str:
    """`http://host:8000`, `.../v1` and `.../v1/chat/completions` all mean `.../v1`.

    Raises:
        ValueError: what is no http address.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"judge URL {public_url(url)!r} is no http(s) address, such as http://localhost:8000/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return urlunsplit(parts._replace(path=path or "/v1", fragment=""))


def public_url(url: str) -> str:
    """The address without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


class Transport(OpenAIProvider):
    """Sends conversations to an OpenAI-compatible server; safe to call from many threads.

    Connection faults, time-outs, 408, 409, 429 and 5xx are retried by the client with growing waits.
    """

    def __init__(
        self, url: str, model: str, api_key: str | None, *, timeout: float, retries: int, max_tokens: int
    ) -> None:
        # not super().__init__(): it takes address and key from the environment and waits up to ten minutes
        self.config = ServerConfig(model, temperature=0.0, max_tokens=max_tokens, num_retries=1)
        self.base_url = base_url(url)
        self.api_key = api_key or os.environ.get("OPENAI_API_KEY") or "none"  # local servers take any key
        local = urlsplit(self.base_url).hostname in LOOPBACK
        http = openai.DefaultHttpxClient(trust_env=not local)  # a proxy cannot reach this machine's own servers
        self.client = openai.OpenAI(
            api_key=self.api_key, base_url=self.base_url, timeout=timeout, max_retries=retries, http_client=http
        )
        self.use_client = True
        weakref.finalize(self, http.close)

    @property
    def sampling(self) -> dict[str, Any]:
        """Temperature and token limit as they are sent; models that refuse a temperature get none."""
        return dict(build_sampling_kwargs(self.config))

    def ask(self, conversation: Messages) -> tuple[str, str]:
        """The reply and the name of the model that the server says gave it.

        Raises:
            NoReply: after all retries.
        """
        try:
            response = self.evaluate(Request(messages=conversation))
        except openai.APIStatusError as error:
            reason = f"HTTP {error.status_code} from the judge: {self._safe(error)}"
            raise NoReply(reason, hopeless=isinstance(error, HOPELESS)) from error
        except openai.APIConnectionError as error:
            cause = f" ({self._safe(error.__cause__)})" if error.__cause__ else ""
            raise NoReply(f"judge at {public_url(self.base_url)} not reached: {self._safe(error)}{cause}") from error
        except (
            AttributeError,
            IndexError,
            TypeError,
            ValueError,
        ) as error:  # the provider found no .choices[0]... text
            raise NoReply(f"no text in the judge's reply ({self._safe(error)})", again=True) from error
        return response.content, response.model_used or self.config.model_name

    def _safe(self, error: BaseException) -> str:
        """The error on one line, the key blotted out."""
        return " ".join(str(error).replace(self.api_key, "***").split())[:200] or type(error).__name__
