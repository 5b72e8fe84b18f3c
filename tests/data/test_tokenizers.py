"""Words of a script without spaces, with a tokenizer that was trained on it."""

import io

import numpy as np
import sentencepiece
from test_config import CONFIG

from mvjax.config import text as config_text
from mvjax.data import streams, tokenizers
from mvjax.data.records import record

SENTENCES = ["犬が庭で走る", "猫が窓で眠る", "犬と猫が庭で遊ぶ", "赤い車が走る"]


def test_words_without_spaces_have_no_piece_for_one(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=26,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path / "spiece.model"
    path.write_bytes(model.getvalue())
    spaced = config_text.override(CONFIG, [f"frozen.tokenizer={path}"])
    japanese = config_text.override(spaced, ["data.word_spaces=false"])
    plain, bare = tokenizers.load(spaced), tokenizers.load(japanese)

    def pieces(tokenizer, text):
        return [tokenizer.id_to_piece(i) for i in streams.word_tokens(tokenizer, text)]

    for word in ("犬", "猫", "庭で", "走る"):
        assert pieces(plain, word)[0].startswith("▁")
        assert "▁" not in "".join(pieces(bare, word))
        assert bare.decode(streams.word_tokens(bare, word)) == word
    assert bare.encode("") == []
    words = [record.Word("犬", 0.2, 0.4), record.Word("走る", 0.5, 0.9)]
    row = streams.text_stream(words, 12, bare, pad=3, epad=0)
    streams.check_known((w.text for w in words), bare, place="x")
    assert bare.decode([int(i) for i in np.array(row)[row > 3]]) == "犬走る"
