"""Tokens that people can read, for the inspection of records: a SentencePiece model's, or whole words."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from mvjax.data import streams

FIRST_WORD = 32  # the ids below stand for themselves


@runtime_checkable
class Pieces(streams.Tokenizer, Protocol):
    """A tokenizer that also tells what an id stands for."""

    def id_to_piece(self, id: int, /) -> str:
        """Returns the text of one id."""
        ...


class Words:
    """One id a word, for a dataset whose tokenizer is not at hand."""

    def __init__(self):
        self._words: list[str] = []
        self._ids: dict[str, int] = {}

    def encode(self, text: str, /) -> list[int]:
        """Returns one id for each word; words get theirs in the order in which they come."""
        ids = []
        for word in text.split():
            if word not in self._ids:
                self._ids[word] = FIRST_WORD + len(self._words)
                self._words.append(word)
            ids.append(self._ids[word])
        return ids

    def id_to_piece(self, id: int, /) -> str:
        """Returns the word."""
        return self._words[id - FIRST_WORD]


def pieces(model: Path | None) -> Pieces:
    """A SentencePiece model, or words."""
    if model is None:
        return Words()
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(model))
