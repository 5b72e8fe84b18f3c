"""Tokenizers for inspecting records, with readable tokens: a SentencePiece model, or one token a word."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from mvjax.data import streams

FIRST_WORD = 32  # lower ids are special tokens


@runtime_checkable
class Pieces(streams.Tokenizer, Protocol):
    """A tokenizer that also returns the text of an id."""

    def id_to_piece(self, id: int, /) -> str:
        """Returns the text of one id."""


class Words:
    """One id a word, where no tokenizer is given."""

    def __init__(self):
        self._ids: dict[str, int] = {}

    def encode(self, text: str, /) -> list[int]:
        """Returns one id for each word, numbered by first use."""
        return [self._ids.setdefault(w, FIRST_WORD + len(self._ids)) for w in text.split()]

    def id_to_piece(self, id: int, /) -> str:
        """Returns the word."""
        return list(self._ids)[id - FIRST_WORD]


def pieces(model: Path | None) -> Pieces:
    """Opens a SentencePiece model; None: words."""
    if model is None:
        return Words()
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(model))
