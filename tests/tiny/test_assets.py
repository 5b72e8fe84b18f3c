"""The shipped tiny weights load through the code that loads the real ones, and stay small."""

from pathlib import Path

import jax
import sentencepiece

from mvjax import tiny, tree
from mvjax.nn import model as model_lib
from mvjax.weights import big_vision, kyutai, locate, mimi

ASSETS = Path(tiny.__file__).parent / "assets"


def test_assets_are_under_15_megabytes_together():
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 15e6


def test_frozen_parts_fill_the_model_but_for_the_adapters():
    model = model_lib.VisionSpeech(tiny.MODEL)
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    loaded = tree.flatten(kyutai.load_moshi(locate.resolve(tiny.FROZEN.moshi), tiny.MODEL))
    encoder = big_vision.load_siglip(locate.resolve(tiny.FROZEN.siglip), tiny.MODEL.siglip)
    loaded |= tree.flatten(encoder, "image/encoder/")
    expected = tree.flatten(shapes)
    assert {path: leaf.shape for path, leaf in loaded.items()} == {
        path: leaf.shape for path, leaf in expected.items() if path in loaded
    }
    missing = {path for path in expected if path not in loaded}
    assert missing == {
        "backbone/blocks/gate/down/kernel",
        "backbone/blocks/gate/up/kernel",
        "backbone/blocks/norm_xa/scale",
        "image/norm/scale",
        "image/proj/bias",
        "image/proj/kernel",
        "xa/k/kernel",
        "xa/out/kernel",
        "xa/q/kernel",
        "xa/v/kernel",
    }


def test_codec_and_tokenizer_fit_the_model():
    mimi.load_mimi(locate.resolve(tiny.FROZEN.codec), tiny.CODEC)
    assert tiny.CODEC.codes == tiny.MODEL.audio_vocab
    assert tiny.CODEC.codebooks == tiny.MODEL.codebooks_out
    tokenizer = sentencepiece.SentencePieceProcessor(
        model_file=str(locate.resolve(tiny.FROZEN.tokenizer))
    )
    assert tokenizer.vocab_size() == tiny.MODEL.text_vocab
