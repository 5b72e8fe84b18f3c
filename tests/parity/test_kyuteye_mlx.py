"""kyuteye_mlx's own code beside ours: the encoder, and greedy streaming steps on MLX's CPU backend."""

import dataclasses
import functools
import json
import re

import exported
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
import upstream
from PIL import Image

from mvjax import scopes, tree
from mvjax.data import images
from mvjax.export import runtime_configs, targets, weight_files
from mvjax.nn import model as model_lib
from mvjax.nn import siglip
from mvjax.runtimes.jax import generate
from mvjax.runtimes.jax import model as jax_model

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

MLX = upstream.kyuteye_mlx()
mx = pytest.importorskip("mlx.core")
nn = pytest.importorskip("mlx.nn")


def build(config, params, folder, monkeypatch, *, mode=None):
    """Returns (Lm, SiglipWrapper) as upstream's server loads them, from files that we write."""
    MLX.cross_attention.SharedModuleType._instances.clear()  # else shared with the model before
    monkeypatch.chdir(folder)  # where it looks for the encoder's sizes
    sizes = runtime_configs.encoder_config(config.siglip)
    (folder / "siglip448.config").write_text(json.dumps(sizes))
    file = folder / targets.weight_file("mlx", mode)
    weight_files.save_exported(file, params, config, "mlx", quantization=mode)
    sizes, release = runtime_configs.mlx_config(config, mode), MLX.models.config_v0_1()
    depth = dataclasses.replace(
        release.depformer.transformer, **sizes["depformer"].pop("transformer")
    )
    transformer = dataclasses.replace(release.transformer, **sizes["transformer"])
    model = MLX.models.Lm(
        dataclasses.replace(
            release,
            transformer=transformer,
            depformer=dataclasses.replace(
                release.depformer, transformer=depth, **sizes["depformer"]
            ),
        )
    )
    if mode is not None:
        model.set_dtype(mx.bfloat16)
        bits = {"q8": 8, "q4": 4}[mode]
        nn.quantize(model, bits=bits, group_size=32 if bits == 4 else 64)
    weights = mx.load(str(file))
    weights = MLX.loading.repeat_shared_weights(weights, config.backbone.layers)
    weights, encoder = MLX.loading.split_embedder_weights(weights)
    model.load_weights(list(weights.items()), strict=True)
    kernel = "model.embeddings.patch_embedding.weight"
    encoder[kernel] = encoder[kernel].transpose(0, 2, 3, 1)
    embedder = MLX.siglip.SiglipWrapper()
    embedder.load_weights(list(encoder.items()), strict=True)
    return model, embedder


def unrounded(monkeypatch):
    """Upstream keeps image keys and values in bfloat16, whatever dtype it serves in: not so here."""

    def keep(self, k, v):
        self.keys, self.values, self.is_set = k, v, True

    monkeypatch.setattr(MLX.kv_cache.XACache, "set", keep)


class Recorder:
    """Greedy, and keeps the logits."""

    def __init__(self):
        self.logits = []

    def __call__(self, logits):
        self.logits.append(np.array(logits).reshape(-1))
        return mx.argmax(logits, axis=-1), logits


def converse(model, features, user):
    """Returns (text ids, codec frames, text logits, audio logits) of upstream's steps."""
    text, audio = Recorder(), Recorder()
    gen = MLX.models.LmGen(model, max_steps=user.shape[1], text_sampler=text, audio_sampler=audio)
    gen.reset()
    ids, frames = [], []
    for codes in user.T:
        ids.append(gen.step(mx.array(codes)[None], features).item())
        tokens = gen.last_audio_tokens()
        frames.append(np.full(8, -1) if tokens is None else np.array(tokens)[0])
    T = user.shape[1]
    return ids, frames, np.stack(text.logits), np.stack(audio.logits).reshape(T, 8, -1)


@pytest.mark.parametrize(("name", "frames"), [("from the start", 200), ("from frame 3", 12)])
def test_streaming_steps(name, frames, tmp_path, monkeypatch, compare):
    scope = scopes.Scope(start=3 if name == "from frame 3" else 0)
    config = upstream.like("kyuteye_mlx", scope=scope)
    params = upstream.params(config)
    unrounded(monkeypatch)
    model, embedder = build(config, params, tmp_path, monkeypatch)
    if scope.start:  # before that it would add norm_cross(x): reference 5.4
        assert all(layer.xa_start == scope.start + 1 for layer in model.transformer.layers)
    user = upstream.user_codes(frames)
    features = embedder(mx.array(upstream.image()))
    theirs = converse(model, features, user)

    run = model_lib.VisionSpeech(config)
    pixels = jnp.asarray(images.normalize(upstream.image()))[None]
    mine = jax.jit(lambda p, x: run.apply({"params": p}, x, method="encode_images"))(params, pixels)
    compare("image features", mine, np.array(features), 1e-4)
    live = jax_model.JaxModel(config, params)
    kv = live.encode_image(np.asarray(pixels))
    for what, mine, kept in zip(("keys", "values"), kv, model.xa_cache.state, strict=True):
        compare(what, mine[0], np.array(kept)[0].swapaxes(0, 1), 1e-4)
    session = live.session(kv, probes=True)
    outs = [session.step(codes) for codes in user.T]
    compare.same("text ids", [out.text_token for out in outs], theirs[0])
    none = np.full(8, -1)
    spoken = [none if out.audio_codes is None else out.audio_codes for out in outs]
    compare.same("codec frames", spoken, theirs[1])
    compare("text logits", exported.stacked(outs, "text_logits"), theirs[2], 1e-4)
    compare("audio logits", exported.stacked(outs, "audio_logits"), theirs[3], 1e-4)
    np.testing.assert_array_equal([out.gate > 0 for out in outs], scope(jnp.arange(frames)))
    assert frames < 100 or len(np.unique(theirs[0])) > 20


def test_without_an_image(tmp_path, monkeypatch, compare):
    """Upstream adds norm_cross(x) where no image was given (reference 5.4), ours and this test nothing."""
    config = upstream.like("kyuteye_mlx", scope=scopes.Scope(start=3))
    params = upstream.params(config)
    model, _ = build(config, params, tmp_path, monkeypatch)
    user = upstream.user_codes(12)
    _, _, as_it_runs, _ = converse(model, None, user)
    monkeypatch.setattr(
        MLX.cross_attention.GatedCrossAttention, "__call__", lambda self, xs, **_: mx.zeros_like(xs)
    )
    ids, frames, text, audio = converse(model, None, user)
    run = functools.partial(generate.generate, with_audio_logits=True)
    ours = run(model_lib.VisionSpeech(config), params, jnp.asarray(user)[None])
    compare.same("text ids", ours.text_ids[0], ids)
    compare.same("codec frames", ours.audio_codes[0, :, :-1].T, frames[1:])
    compare("text logits", ours.text_logits[0], text, 1e-4)
    compare("audio logits", ours.audio_logits[0, :, 0], audio[:, 0], 1e-4)
    differs = np.abs(as_it_runs - text).max(axis=-1) > 1e-2
    np.testing.assert_array_equal(differs, np.arange(12) >= 3)


def test_the_last_norm_of_the_encoder(tmp_path, monkeypatch, compare):
    """Its eps matters where the residual stream is small."""
    config = upstream.like("kyuteye_mlx")
    flat = tree.flatten(upstream.params(config))
    small = r"image/encoder/(embedding|pos_embedding|.*/(out|Dense_1))(/.*)?"
    flat = {p: x * np.float32(1e-3 if re.fullmatch(small, p) else 1) for p, x in flat.items()}
    params = tree.unflatten(flat)
    _, embedder = build(config, params, tmp_path, monkeypatch)
    features = np.array(embedder(mx.array(upstream.image())))
    pixels = jnp.asarray(images.normalize(upstream.image()))[None]
    encoder = params["image"]["encoder"]
    compare(
        "features", siglip.Siglip(config.siglip).apply({"params": encoder}, pixels), features, 1e-4
    )
    as_trained = siglip.Siglip(upstream.CONFIG.siglip).apply({"params": encoder}, pixels)
    assert np.abs(np.asarray(as_trained) - features).max() > 1e-2


@pytest.mark.parametrize("shape", [(37, 53), (1, 7), (211, 24), (20, 301), (600, 401)])
def test_images_as_the_server_resizes_them(shape, compare):
    """`local_web.model_server`: `img.resize((size, size), resample=3)`."""
    picture = np.random.default_rng(5).integers(0, 256, (*shape, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(picture).resize((448, 448), resample=3))
    compare.within("pixels", images.resize_square(picture, 448), theirs, 1)


# The logit is shifted by 4 in the dtype it serves in here too, and its sigmoid rounds in between: see
# `test_gates` of test_kyuteye_pt_parts.py
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2**-7)])
def test_gate(dtype, tolerance, compare):
    """Matmuls are exact, as one weight a column is not 0."""
    width = upstream.CONFIG.backbone.width
    gate = upstream.CONFIG.cross_attention.gate
    release = MLX.models.config_v0_1().transformer
    theirs = MLX.cross_attention.XAGate(dataclasses.replace(release, d_model=width))
    rng = np.random.default_rng(2)
    weights = {}
    for path, spec in gate.params(width, upstream.CONFIG.backbone.heads).items():
        values = (rng.standard_normal(spec.shape) * 3).astype(jnp.bfloat16).astype(np.float32)
        rows, columns = np.arange(spec.shape[0])[:, None], np.arange(spec.shape[1])[None]
        weights[path] = np.where(rows == columns % spec.shape[0], values, 0).astype(np.float32)
    names = {"down/kernel": "alpha.layers.0.weight", "up/kernel": "alpha.layers.2.weight"}
    theirs.load_weights([(names[p], mx.array(w.T)) for p, w in weights.items()], strict=True)
    theirs.set_dtype(getattr(mx, dtype))
    u = rng.standard_normal((1, 40, width)).astype(dtype)
    x = mx.array(u.astype(np.float32)).astype(getattr(mx, dtype))
    want = np.array(theirs.act(theirs.alpha(x)).astype(mx.float32))
    compare("g", jax.jit(gate)(weights, toy.seen(jnp.asarray(u))), want, tolerance)
