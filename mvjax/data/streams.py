"""The text stream of an example: words on the 12.5 Hz frame grid (speech), or the transcript (speechless).

speech       0.24 s "hello", tokens 7 8, with pad 3 and epad 0:  3 3 0 7 8 3 3 ...
speechless   BOS question EOS answer BOS question EOS answer BOS
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32

from mvjax import messages, types
from mvjax.data.records import record

BOS, EOS = 1, 2


@runtime_checkable
class Tokenizer(Protocol):
    """The methods of a SentencePieceProcessor that the text stream needs."""

    def encode(self, text: str, /) -> list[int]:
        """Returns ids without BOS and EOS."""
        ...


def text_stream(
    words: Sequence[record.Word] | None, frames: int, tokenizer: Tokenizer, *, pad: int, epad: int
) -> Int32[np.ndarray, " T"]:
    """Puts the tokens of the assistant's words on the frame grid; None (no transcript) gives all -1.

    Words are taken by start; those without a positive duration are dropped. A word starts at the
    frame its start falls in, one token a frame, with `epad` in place of a `pad` right before it.
    Tokens that do not fit before the next word are dropped.

    Source: moshi-finetune `interleaver.py`, `Interleaver`, as in reference section 7.1, with the
    options it trains with.
    """
    if words is None:
        return np.full(frames, types.ZERO_TOKEN, np.int32)
    row = np.full(frames, pad, np.int32)
    due = collections.deque(sorted((w for w in words if w.end > w.start), key=lambda w: w.start))
    pending: list[int] = []
    for t in range(frames):
        while due and due[0].start * types.FRAME_RATE < t + 1:
            pending = word_tokens(tokenizer, due.popleft().text)
        if pending:
            if t > 0 and row[t - 1] == pad:
                row[t - 1] = epad
            row[t] = pending.pop(0)
    return row


def speechless_row(
    turns: Sequence[record.Turn], tokenizer: Tokenizer, length: int
) -> tuple[Int32[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    """A dialogue as text: (token ids, loss mask), cut or padded with -1 to `length`.

    A user's turn is BOS, its tokens, EOS; an assistant's turn is its tokens; BOS ends the dialogue.
    The loss mask covers the assistant's tokens and the BOS after them.
    """
    return joined_turns(turns, [turn_tokens(turn, tokenizer) for turn in turns], length)


def turn_tokens(turn: record.Turn, tokenizer: Tokenizer) -> list[int]:
    """A turn's tokens in a speechless row, BOS and EOS of a user's included."""
    # Word by word, so that ids are the same as in a text stream.
    tokens = [i for word in turn.text.split() for i in word_tokens(tokenizer, word)]
    return [BOS, *tokens, EOS] if turn.speaker == "user" else tokens


def joined_turns(
    turns: Sequence[record.Turn], tokens: Sequence[Sequence[int]], length: int
) -> tuple[Int32[np.ndarray, " T"], Bool[np.ndarray, " T"]]:
    """The `speechless_row` of turns, of each of which the tokens are known."""
    ids: list[int] = []
    mask: list[bool] = []
    for turn, its_tokens in [*zip(turns, tokens, strict=True), (None, [BOS])]:
        answer = turn is not None and turn.speaker == "assistant"
        if not answer:  # its BOS is what ends an answer
            mask.append(bool(ids) and ids[-1] != EOS)
        mask += [answer] * (len(its_tokens) - (not answer))
        ids += its_tokens
    row, valid = np.full(length, types.ZERO_TOKEN, np.int32), np.zeros(length, bool)
    count = min(len(ids), length)
    row[:count], valid[:count] = ids[:count], mask[:count]
    return row, valid


def prompt(turns: Sequence[record.Turn], tokenizer: Tokenizer) -> list[int]:
    """The speechless row up to the EOS of the last user turn, for the assistant to continue."""
    row = speechless_row(turns, tokenizer, 1 << 16)[0]
    return [int(i) for i in row[: int(np.flatnonzero(row == EOS)[-1]) + 1]]


def check_known(texts: Iterable[str], tokenizer: Any, *, place: str) -> None:
    """Raises ValueError for words that a tokenizer does not know: its unknown token has the id of EPAD."""
    unknown = tokenizer.unk_id()
    words = dict.fromkeys(word for text in texts for word in text.split())
    strange = [word for word in words if unknown in word_tokens(tokenizer, word)]
    if strange:
        raise ValueError(f"{place}: the tokenizer does not know {messages.names(strange, shown=5)}")


def word_tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of one stripped word; a newline within is the newline piece, if the tokenizer has one."""
    first, *rest = text.strip().split("\n")
    ids = list(tokenizer.encode(first))
    for line in rest:
        ids += [*tokenizer.encode("\n")[-1:], *tokenizer.encode(line)]
    return ids
