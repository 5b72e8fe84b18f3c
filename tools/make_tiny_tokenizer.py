"""Makes mvjax/digits/assets/tokenizer.model: a piece for every word of the talk, and the letters.

    python tools/make_tiny_tokenizer.py

Takes 2 s and writes the same bytes every time. A change of the words changes the ids, so the tiny
Moshi must be trained again, with text_vocab in mvjax/digits/frozen_models.py as printed here.
"""

from __future__ import annotations

import io
import string
from pathlib import Path

import sentencepiece

from mvjax.digits import talk

OUT = Path(__file__).parents[1] / "mvjax/digits/assets/tokenizer.model"
SPECIAL = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": 3}  # as in Moshi's tokenizer


def main() -> None:
    """Trains, writes and reports."""
    words = talk.vocabulary()
    letters = string.ascii_lowercase
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(letters)]),
        model_writer=model,
        model_type="char",
        vocab_size=len(SPECIAL) + len(words) + len(letters) + 1,  # 1: the space
        user_defined_symbols=[f"▁{word}" for word in words],
        required_chars=letters,
        character_coverage=1.0,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **SPECIAL,
    )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_bytes(model.getvalue())
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    split = [word for word in words if len(tokenizer.encode(word)) > 1]
    print(f"{OUT}: text_vocab={tokenizer.vocab_size()}; words of several pieces: {split or 'none'}")


if __name__ == "__main__":
    main()
