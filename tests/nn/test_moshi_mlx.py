"""Base Moshi in PyPI's `moshi_mlx`, which reads the file that we write, beside ours: frames, then codes."""

import dataclasses

import closeness
import jax.numpy as jnp
import numpy as np
import pytest
import stepping
import toy

from mvjax import tree
from mvjax.config import schema
from mvjax.weights import kyutai

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

mx = pytest.importorskip("mlx.core")
lm = pytest.importorskip("moshi_mlx.models.lm")
transformer = pytest.importorskip("moshi_mlx.modules.transformer")

# 11/4 of the widths is what moshi_mlx makes of 4 times the widths; its window has the frame itself on top
CONFIG = dataclasses.replace(
    toy.MODEL,
    backbone=schema.BackboneConfig(
        width=48, layers=3, heads=4, hidden=132, context=5, context_has_self=False
    ),
    depformer=schema.DepformerConfig(width=32, layers=2, heads=2, hidden=88),
)
FRAMES = 17


def sizes(width, layers, heads, *, context, positions):
    return transformer.TransformerConfig(
        d_model=width,
        num_heads=heads,
        num_layers=layers,
        dim_feedforward=4 * width,
        causal=True,
        norm_first=True,
        bias_ff=False,
        bias_attn=False,
        layer_scale=None,
        context=context,
        max_period=10_000,
        use_conv_block=False,
        use_conv_bias=True,
        cross_attention=False,
        gating=True,
        norm="rms_norm",
        positional_embedding=positions,
        conv_layout=False,
        conv_kernel_size=3,
        kv_repeat=1,
        max_seq_len=64,
    )


def twin(path):
    """Returns moshi_mlx's model with the weights of a file of ours."""
    b, d, c = CONFIG.backbone, CONFIG.depformer, CONFIG
    config = lm.LmConfig(
        transformer=sizes(b.width, b.layers, b.heads, context=b.context, positions="rope"),
        depformer=lm.DepFormerConfig(
            transformer=sizes(
                d.width, d.layers, d.heads, context=c.codebooks_out, positions="none"
            ),
            num_slices=c.codebooks_out,
        ),
        text_in_vocab_size=c.text_vocab + 1,
        text_out_vocab_size=c.text_vocab,
        audio_vocab_size=c.audio_vocab + 1,
        audio_codebooks=c.codebooks - 1,
        audio_delays=list(c.delays[1:]),
        conditioners={},
    )
    model = lm.Lm(config)
    model.load_pytorch_weights(str(path), config, strict=True)
    return model


class Greedy:
    """A sampler that takes the best and remembers the logits."""

    def __init__(self):
        self.logits = []

    def __call__(self, logits):
        self.logits.append(np.array(logits).reshape(-1))
        return mx.argmax(logits, axis=-1).astype(mx.int32), None


def codes():
    rng = np.random.default_rng(3)
    ids = rng.integers(0, CONFIG.audio_vocab, (CONFIG.codebooks, FRAMES))
    ids[0] = rng.integers(0, CONFIG.text_vocab, FRAMES)
    ids[2, 4] = ids[0, 6] = -1
    return ids.astype(np.int32)


@pytest.mark.slow
def test_frames_and_their_codes(tmp_path):
    params = toy.params(CONFIG)
    flat = {path: np.asarray(leaf) for path, leaf in tree.flatten(params).items()}
    kyutai.save_moshi(tmp_path / "moshi.safetensors", tree.unflatten(flat), CONFIG)
    theirs = twin(tmp_path / "moshi.safetensors")

    outs = stepping.backbone(codes()[None], None, config=CONFIG)
    for t, (ids, out) in enumerate(zip(codes().T, outs, strict=True)):
        z, text = out.z, out.text_logits
        best = jnp.argmax(text, axis=-1).astype(jnp.int32)
        chosen, audio = stepping.depth(z, best, config=CONFIG)
        words, sounds = Greedy(), Greedy()
        said = [mx.array([[int(i)]]) for i in ids]
        _, tokens, hidden = theirs._sample(said[0], said[1:], words, sounds)
        close = {"share": closeness.COMPOSED, "where": f"frame {t}"}
        closeness.assert_close(z[0], np.array(hidden)[0, 0], **close)
        closeness.assert_close(text[0], words.logits[0], **close)
        closeness.assert_close(audio[0], np.stack(sounds.logits), **close)
        np.testing.assert_array_equal(chosen[0], np.array(tokens).reshape(-1))
