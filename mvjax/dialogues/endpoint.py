"""A client for language models behind an OpenAI-compatible endpoint: vLLM, llama.cpp server, Ollama, others.

POST BASE/chat/completions with model, messages, temperature, max_tokens and seed. Failed requests (429, 5xx,
timeouts, lost connections, invalid JSON) are retried with exponential backoff.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
from collections.abc import Sequence
from urllib import parse

import aiohttp
import msgspec

from mvjax.dialogues import prompts

MODEL = "mistralai/Mistral-Nemo-Instruct-2407"  # what the paper used
KEY = "OPENAI_API_KEY"  # environment variable; local servers need none

_LONGEST_WAIT = 60.0  # seconds
_RETRIED = (408, 409, 425, 429)  # and 5xx
_FATAL = (401, 402, 403, 404, 405)  # for every request: wrong key, model or address


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Which model, and the parameters of requests (temperature and max_tokens are the reference's).

    `system_role=False` puts the instructions into the first user message, for chat templates without a
    system role.
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

    def __post_init__(self):
        parts = parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(
                f"endpoint: expected a URL such as http://localhost:8000/v1, got {self.url!r}"
            )
        if self.attempts < 1 or self.timeout <= 0:
            raise ValueError(f"endpoint: expected attempts >= 1 and a positive timeout, got {self}")

    @property
    def completions(self) -> str:
        """URL of the requests."""
        base = self.url.rstrip("/")
        return f"{base}{'' if parse.urlsplit(base).path else '/v1'}/chat/completions"


class ChatAnswer(msgspec.Struct, frozen=True):
    """The model's message; `cut`: it reached max_tokens."""

    text: str
    cut: bool
    tokens: int


class EndpointRefuses(ValueError):
    """No request to this endpoint can succeed; the message says why and what to do."""


class Unanswered(Exception):
    """A request failed in all attempts; the message is a short reason."""


def key_from_environment() -> str | None:
    """The API key, if it is set."""
    return os.environ.get(KEY) or None


class Client:
    """Connections to an endpoint; use as `async with`."""

    def __init__(self, endpoint: Endpoint, *, connections: int):
        self._endpoint, self._connections = endpoint, connections
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

    async def ask(self, chat: Sequence[prompts.Message], *, seed: int) -> ChatAnswer:
        """Asks for the model's next message.

        Raises:
          Unanswered: after the last attempt, or if the server refuses this request.
          EndpointRefuses: if it would refuse every request.
        """
        endpoint = self._endpoint
        body = {
            "model": endpoint.model,
            "messages": list(chat) if endpoint.system_role else _merged(chat),
            "temperature": endpoint.temperature,
            "max_tokens": endpoint.max_tokens,
            "seed": seed,
        }
        jitter = random.Random(seed)
        for attempt in range(endpoint.attempts):
            if attempt:
                self.retries += 1
            wait = min(_LONGEST_WAIT, endpoint.first_wait * 2**attempt) * jitter.uniform(0.5, 1)
            try:
                async with self._session.post(endpoint.completions, json=body) as response:
                    if response.status == 200:
                        return _parse(await response.read())
                    reason = await self._refusal(response)
                    wait = _asked_wait(response) or wait
            except (aiohttp.ClientError, TimeoutError) as error:
                reason = f"{type(error).__name__} {error}".strip()
            except msgspec.MsgspecError as error:
                reason = f"no chat completion: {error}"
            if attempt + 1 < endpoint.attempts:
                await asyncio.sleep(wait)
        raise Unanswered(reason)

    async def _refusal(self, response: aiohttp.ClientResponse) -> str:
        """Why a request failed, if it can be retried."""
        said = " ".join((await response.text(errors="replace")).split())[:300]
        reason = f"{response.status} {said}"
        if response.status in _FATAL:
            raise EndpointRefuses(
                f"{self._endpoint.completions}: expected an answer from model {self._endpoint.model!r}, got"
                f" {reason}; check the endpoint, the model's name and, if a key is needed, ${KEY}"
            )
        if response.status in _RETRIED or response.status >= 500:
            return reason
        raise Unanswered(reason)


class _ChatMessage(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _ChatMessage
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


def _parse(body: bytes) -> ChatAnswer:
    completion = msgspec.json.decode(body, type=_Completion)
    if not completion.choices:
        raise msgspec.ValidationError("expected choices, got none")
    choice = completion.choices[0]
    tokens = completion.usage.completion_tokens if completion.usage else 0
    return ChatAnswer(choice.message.content or "", choice.finish_reason == "length", tokens)


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
