"""A client for language models behind an OpenAI-compatible endpoint: vLLM, llama.cpp server, Ollama, others.

POST BASE/chat/completions with model, messages, temperature, max_tokens and seed. Failed requests (429, 5xx,
timeouts, lost connections, damaged answers) are retried with exponential backoff.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib import parse

import aiohttp

from mvjax.dialogues import completion, prompts

MODEL = "mistralai/Mistral-Nemo-Instruct-2407"  # what the paper used
KEY = "OPENAI_API_KEY"  # environment variable; local servers need none

_LONGEST_WAIT = 60.0  # seconds
_RETRIED = (408, 409, 425, 429)  # and 5xx
_MOST_REASONS = 20  # told; the rest is counted
_FATAL = (401, 402, 403, 404, 405)  # for every request: wrong key, model or address


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Which model, and the parameters of requests (temperature and max_tokens are the reference's).

    `system_role=False` puts the instructions into the first user message, for chat templates without a
    system role. `renamed` gives temperature, max_tokens or seed the name that a server wants, or none to
    leave it out; `extra` is sent besides.
    """

    url: str  # base URL as OpenAI clients take it; /v1 is added to a bare host
    model: str = MODEL
    key: str | None = None  # bearer token
    temperature: float = 0.7
    max_tokens: int = 150  # of an utterance
    timeout: float = 120.0  # seconds for one answer
    attempts: int = 6  # per answer, the first included
    first_wait: float = 1.0  # seconds before the second; doubled each time, with jitter
    system_role: bool = True
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        parts = parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(
                f"endpoint: expected a URL such as http://localhost:8000/v1, got {self.url!r}"
            )
        if self.attempts < 1 or self.timeout <= 0:
            raise ValueError(f"endpoint: expected attempts >= 1 and a positive timeout, got {self}")
        if self.max_tokens < 1:
            raise ValueError(f"endpoint: expected max_tokens >= 1, got {self.max_tokens}")
        sent = ("temperature", "max_tokens", "seed")
        unknown = sorted(set(self.renamed) - set(sent))
        taken = sorted({"model", "messages"} & {*self.renamed.values(), *self.extra})
        if unknown or taken:
            raise ValueError(
                f"endpoint: expected new names for parameters of {', '.join(sent)}, which leave model and"
                f" messages as they are, got {unknown or taken}"
            )

    @property
    def completions(self) -> str:
        """URL of the requests."""
        base = self.url.rstrip("/")
        return f"{base}{'' if parse.urlsplit(base).path else '/v1'}/chat/completions"

    def body(self, chat: Sequence[prompts.Message], seed: int) -> dict[str, Any]:
        """JSON of a request for the next message."""
        sent = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": seed}
        named = {self.renamed.get(name, name): value for name, value in sent.items()}
        named.pop("", None)
        messages = list(chat) if self.system_role else _merged(chat)
        return {"model": self.model, "messages": messages, **named, **self.extra}


class EndpointRefuses(ValueError):
    """No request to this endpoint can succeed; the message says why and what to do."""


def key_from_environment() -> str | None:
    """The API key, if it is set."""
    return os.environ.get(KEY) or None


class Client:
    """Connections to an endpoint; use as `async with`. `report` is told every reason of a failure once."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        connections: int,
        report: Callable[[str], None] = lambda reason: None,
    ):
        self._endpoint, self._connections, self._report = endpoint, connections, report
        self._reasons: dict[str, str] = {}  # without numbers -> as first given
        self.retries = 0  # repeated requests

    async def __aenter__(self) -> Client:
        key = self._endpoint.key
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections),
            timeout=aiohttp.ClientTimeout(total=self._endpoint.timeout),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, chat: Sequence[prompts.Message], *, seed: int) -> completion.ChatAnswer:
        """Asks for the model's next message.

        Raises:
          Unanswered: after the last attempt, or if the server refuses this request.
          NoAnswer: if the last answer was damaged, or the model said nothing: another seed may do.
          EndpointRefuses: if it would refuse every request.
        """
        endpoint = self._endpoint
        body = endpoint.body(chat, seed)
        jitter = random.Random(seed)
        for attempt in range(endpoint.attempts):
            if attempt:
                self.retries += 1
            wait = min(_LONGEST_WAIT, endpoint.first_wait * 2**attempt) * jitter.uniform(0.5, 1)
            try:
                async with self._session.post(endpoint.completions, json=body) as response:
                    status, said = response.status, await response.read()
                    wait = _asked_wait(response) or wait
                if status == 200:
                    return completion.parse(said)
                failure = self._refusal(status, said)
            except completion.ReportedError as error:
                failure = self._refusal(error.status, error.body)
            except completion.DamagedAnswer as error:
                failure = error
            except completion.NoAnswer as error:
                raise completion.NoAnswer(self._once(str(error))) from None
            except (aiohttp.ClientError, TimeoutError) as error:
                failure = completion.Unanswered(f"{type(error).__name__} {error}".strip())
            reason = self._once(str(failure))
            if attempt + 1 < endpoint.attempts:
                await asyncio.sleep(wait)
        raise type(failure)(reason)

    def _refusal(self, status: int, body: bytes) -> completion.Unanswered:
        """Why a request failed, if it can be retried."""
        reason = f"{status} {completion.words(body)}"
        if status in _FATAL:
            raise EndpointRefuses(
                f"{self._endpoint.completions}: expected an answer from model {self._endpoint.model!r}, got"
                f" {reason}; check the endpoint, the model's name and, if a key is needed, ${KEY}"
            )
        if status in _RETRIED or status >= 500:
            return completion.Unanswered(reason)
        raise completion.Unanswered(self._once(reason))

    def _once(self, reason: str) -> str:
        """Reports a reason that is new but for its numbers; returns it as it was first given."""
        form = re.sub(r"[\da-f-]*\d[\da-f-]*", "#", reason)
        if form not in self._reasons:
            self._reasons[form] = reason
            if len(self._reasons) <= _MOST_REASONS:
                self._report(f"{self._endpoint.completions}: {reason}")
        return self._reasons[form]


def _asked_wait(response: aiohttp.ClientResponse) -> float | None:
    """Seconds of a Retry-After header, within reason."""
    try:
        seconds = float(response.headers.get("Retry-After", ""))
    except ValueError:
        return None
    return min(max(0.0, seconds), _LONGEST_WAIT)


def _merged(chat: Sequence[prompts.Message]) -> list[prompts.Message]:
    """The chat with its system text in front of the first user message."""
    system, first, *rest = chat
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest]
