"""The shipped tiny weights load through the code that loads the real ones, and stay small."""

from pathlib import Path

import jax
import sentencepiece

from mvjax import files, tree
from mvjax.digits import frozen_models
from mvjax.nn import model as model_lib
from mvjax.weights import big_vision, kyutai, mimi

ASSETS = Path(frozen_models.__file__).parent / "assets"


def test_assets_are_under_15_megabytes_together():
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 15e6


def test_frozen_parts_fill_the_model_but_for_the_adapters():
    model = model_lib.VisionSpeech(frozen_models.MODEL)
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    loaded = tree.flatten(
        kyutai.load_moshi(files.resolve(frozen_models.FROZEN.moshi), frozen_models.MODEL)
    )
    encoder = big_vision.load_siglip(
        files.resolve(frozen_models.FROZEN.siglip), frozen_models.MODEL.siglip
    )
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
    mimi.load_mimi(files.resolve(frozen_models.FROZEN.codec), frozen_models.CODEC)
    assert frozen_models.CODEC.codes == frozen_models.MODEL.audio_vocab
    assert frozen_models.CODEC.codebooks == frozen_models.MODEL.codebooks_out
    tokenizer = sentencepiece.SentencePieceProcessor(
        model_file=str(files.resolve(frozen_models.FROZEN.tokenizer))
    )
    assert tokenizer.vocab_size() == frozen_models.MODEL.text_vocab
