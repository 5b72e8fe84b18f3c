"""Opens a run's SentencePiece tokenizer, also for scripts that put no space between words."""

from __future__ import annotations

from typing import Any

import sentencepiece

from mvjax import files
from mvjax.config import schema

_SPACE = "▁"


def load(config: schema.Config) -> Any:
    """Returns the SentencePieceProcessor of a run, `Unspaced` if its words have no space before them."""
    path = str(files.resolve(config.frozen.tokenizer))
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=path)
    return tokenizer if config.data.word_spaces else Unspaced(tokenizer)


class Unspaced:
    """A tokenizer without the space that SentencePiece puts before a text; else as the one it is made of."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.decode, self.id_to_piece = tokenizer.decode, tokenizer.id_to_piece
        self.unk_id = tokenizer.unk_id

    def encode(self, text: str, /) -> list[int]:
        """Returns ids; a first piece `▁x` becomes `x`, unless the vocabulary has no such piece."""
        ids = list(self._tokenizer.encode(text))
        first = self.id_to_piece(ids[0]) if ids else ""
        if first == _SPACE:
            return ids[1:]
        bare = self._tokenizer.piece_to_id(first.removeprefix(_SPACE))
        known = first.startswith(_SPACE) and bare != self.unk_id()
        return [bare, *ids[1:]] if known else ids
