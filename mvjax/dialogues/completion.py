"""Reads chat completions: what the model said, without its reasoning, or why it said nothing.

Models that reason do so in `reasoning_content`, or, behind a server that does not part it, in the text
itself, between markers that differ by family: <think> (DeepSeek, Qwen), [THINK] (Magistral), ◁think▷ (Kimi),
<|START_THINKING|> (Command), <seed:think>, the channels of gpt-oss. A chat template may hold the first one.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from mvjax.data.ingest import sources

_CUT = ("length", "content_filter")
_BROKEN = ("error", "abort")
_MOST_SHOWN = 300  # characters of a server's words

_TAG = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad)"
_STARTS = re.compile(
    rf"<{_TAG}>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|channel\|>(?!\s*final)|^\s*analysis(?=[A-Z])",
    re.I,
)
_ENDS = re.compile(
    rf"</{_TAG}>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|channel\|>\s*final\s*<\|message\|>|assistantfinal",
    re.I,
)
_SPECIAL = re.compile(r"<\|(?!channel|start_thinking)\w+\|>", re.I)  # tokens such as <|end|>


class ChatAnswer(msgspec.Struct, frozen=True):
    """The model's message; `cut`: it reached the limit of tokens, or a filter of the server."""

    text: str
    cut: bool
    tokens: int  # generated; 0 where the server does not say


class Unanswered(Exception):
    """A request failed in all attempts; the message is a short reason."""


class NoAnswer(Unanswered):
    """The server answered without anything to say; with another seed it may have something."""


class DamagedAnswer(NoAnswer):
    """The server's answer is no chat completion; asked again, it may be one."""


class ReportedError(Exception):
    """An error that the server reports with status 200; `status` is what it should have been."""

    def __init__(self, status: int, body: bytes):
        super().__init__(status)
        self.status, self.body = status, body


def parse(body: bytes) -> ChatAnswer:
    """The answer in the body of a response.

    Raises:
      NoAnswer: if the model said nothing, or never finished reasoning.
      DamagedAnswer: if this is no chat completion, or generation failed on the way.
      ReportedError: if the server reports an error.
    """
    try:
        completion = msgspec.json.decode(body, type=_Completion)
    except sources.DAMAGE as error:
        raise DamagedAnswer(f"no chat completion: {error}: {words(body)}") from error
    if completion.error:
        raise ReportedError(_integer(completion.error, "code") or 500, body)
    if not completion.choices:
        raise DamagedAnswer(f"no chat completion: it has no choices: {words(body)}")
    choice = completion.choices[0]
    if choice.finish_reason in _BROKEN:
        raise DamagedAnswer(f"generation ended by {choice.finish_reason!r}")
    written = _text(choice.message.content)
    said = _SPECIAL.sub("", _ENDS.split(written)[-1])
    unfinished = _STARTS.search(said)
    if unfinished or (not said.strip() and _expected_words(choice, written)):
        raise NoAnswer(_why_nothing(choice, reasoned=bool(unfinished or said != written)))
    cut = choice.finish_reason in _CUT
    return ChatAnswer(said, cut, _integer(completion.usage, "completion_tokens"))


def words(body: bytes) -> str:
    """The beginning of a body, on one line."""
    return " ".join(body.decode(errors="replace").split())[:_MOST_SHOWN]


class _Message(msgspec.Struct):
    content: str | list[Any] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: Any = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


def _text(content: str | list[Any] | None) -> str:
    """The text of a message, of whose parts some may be reasoning."""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(str(part.get("text", "")) for part in parts)
    return content or ""


def _expected_words(choice: _Choice, written: str) -> bool:
    """Whether silence is the server's fault, and not what the model chose to say."""
    message = choice.message
    return bool(
        written
        or not isinstance(message.content, str)
        or message.reasoning_content
        or message.reasoning
        or choice.finish_reason in _CUT
    )


def _why_nothing(choice: _Choice, *, reasoned: bool) -> str:
    message = choice.message
    if message.refusal:
        return f"refused: {words(str(message.refusal).encode())}"
    if not (
        reasoned
        or message.reasoning_content
        or message.reasoning
        or isinstance(message.content, list)
    ):
        return f"no content, finish_reason {choice.finish_reason!r}"
    if choice.finish_reason == "length":
        return "all tokens went into reasoning: raise --max-tokens, or turn reasoning off by --parameter"
    return "reasoning without an answer"


def _integer(fields: Any, name: str) -> int:
    value = str(fields.get(name)) if isinstance(fields, dict) else ""
    return int(value) if re.fullmatch(r"\d{1,9}", value) else 0
