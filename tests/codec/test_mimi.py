"""Mimi: parity with `moshi`, streaming and chunks equal the whole, causality, sizes."""

import dataclasses
import functools

import closeness
import jax
import jax.numpy as jnp
import mimi_twin
import numpy as np
import pytest

from mvjax import tree
from mvjax.codec import mimi, seanet, sounding, transformer
from mvjax.config import schema
from mvjax.weights import mimi as mimi_weights

CONFIG, FRAME = mimi_twin.CONFIG, mimi_twin.FRAME
B, T = 2, 8
MISSING = 5  # samples that the audio lacks to be whole frames
AUDIO = np.random.default_rng(5).normal(size=(B, T * FRAME - MISSING)).astype(np.float32)


def _round_trip(params: dict, audio: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Latents, codes and decoded audio of a whole signal."""
    model = mimi.Mimi(CONFIG).bind({"params": params})
    latents = model.latents(audio)
    codes = model.quantize(latents)
    return latents, codes, model.decode(codes)


@jax.jit
def _stream(params: dict, state: mimi.MimiState, audio: jax.Array):
    """The state after some frames, and what `_round_trip` returns of them."""
    model = mimi.Mimi(CONFIG).bind({"params": params})
    _, latents = model.latents_step(state.encoder, audio)
    state, codes = model.encode_step(state, audio)
    state, decoded = model.decode_step(state, codes)
    return state, (latents, codes, decoded)


_whole = jax.jit(_round_trip)  # compiled once for all tests


@pytest.fixture(scope="module")
def params() -> dict:
    """Random parameters, none of them zero."""
    init = mimi.Mimi(CONFIG).init
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, FRAME)))["params"]
    rng = np.random.default_rng(1)
    flat = {}
    for path, leaf in tree.flatten(shapes).items():
        fan_in = np.prod(leaf.shape[:-1]) if path.endswith("kernel") else 6
        flat[path] = (rng.normal(size=leaf.shape) * fan_in**-0.5).astype(np.float32)
        if path.endswith("cluster_usage"):
            flat[path] = np.abs(flat[path]) + 0.5
    return tree.unflatten(flat)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """The PyTorch model, and its parameters through its file."""
    pytest.importorskip("torch")
    pytest.importorskip("moshi")
    from safetensors import torch as safetensors_torch

    model = mimi_twin.build()
    path = tmp_path_factory.mktemp("twin") / "mimi.safetensors"
    safetensors_torch.save_file(model.state_dict(), path)
    return model, mimi_weights.load_mimi(path, CONFIG)


@pytest.mark.parity
def test_whole_signals_agree_with_moshi(twin):
    import torch

    model, params = twin
    with torch.no_grad():
        x = torch.from_numpy(AUDIO)[:, None]
        latents = model._encode_to_unquantized_latent(x).transpose(1, 2).numpy()
        codes = model.encode(x)
        decoded = model.decode(codes)[:, 0].numpy()
    assert CONFIG.context < 2 * T  # the attention window matters
    assert codes.shape == (B, CONFIG.codebooks, T)
    assert len(np.unique(codes)) > 8
    found = _whole(params, AUDIO)
    np.testing.assert_allclose(found[0], latents, atol=1e-4)
    np.testing.assert_array_equal(found[1], codes)
    np.testing.assert_allclose(found[2], decoded, atol=1e-4)


@pytest.mark.parity
def test_streams_agree_with_moshi(twin):
    import torch

    model, params = twin
    # Past the context moshi's stream departs from moshi's whole signal: see codec/transformer.py.
    frames = CONFIG.context // 2
    state = mimi.start(CONFIG, batch=B)
    with torch.no_grad(), model.streaming(B):
        for frame in np.split(AUDIO[:, : frames * FRAME], frames, axis=1):
            codes = model.encode(torch.from_numpy(frame)[:, None])
            decoded = model.decode(codes)[:, 0].numpy()
            state, found = _stream(params, state, frame)
            np.testing.assert_array_equal(found[1], codes)
            np.testing.assert_allclose(found[2], decoded, atol=1e-4)


def test_streaming_equals_whole(params):
    audio = np.pad(AUDIO, ((0, 0), (0, MISSING)))
    state = mimi.start(CONFIG, batch=B)
    streamed, at = [], 0
    for size in (1, 3, 1, 1, 1, 1):
        chunk = audio[:, at * FRAME : (at + size) * FRAME]
        state, found = _stream(params, state, chunk)
        streamed.append(found)
        at += size
    assert at == T
    assert state.encoder.position == state.decoder.position == 2 * T
    latents, codes, decoded = _whole(params, AUDIO)
    np.testing.assert_allclose(np.concatenate([s[0] for s in streamed], 1), latents, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate([s[1] for s in streamed], 2), codes)
    np.testing.assert_allclose(np.concatenate([s[2] for s in streamed], 1), decoded, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_of_the_convolutions_change_nothing(params, monkeypatch, chunk):
    monkeypatch.setattr(mimi.Mimi, "_chunk", lambda self, batch, frames: min(chunk, frames))
    found = jax.jit(lambda *args: _round_trip(*args))(params, AUDIO)
    assert found[0].shape == (B, T, CONFIG.latent)
    assert found[2].shape == (B, T * FRAME)
    for one, other in zip(found, _whole(params, AUDIO), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_long_signals_are_cut_into_chunks_on_a_cpu():
    def chunk(batch: int, frames: int) -> int:
        return mimi.Mimi(schema.MimiConfig())._chunk(batch, frames)

    assert chunk(1, 4) == 4
    assert chunk(1, 100) == 8
    assert chunk(64, 100) == 1


def test_silence_in_which_the_convolutions_rest_is_left_out(params, monkeypatch):
    rest = sounding.reach(CONFIG)
    signals = np.zeros((2, 4 * rest + 9, FRAME), np.float32)
    sound = AUDIO[:, : 5 * FRAME].reshape(2, -1, FRAME)
    signals[0, 1:3], signals[0, rest + 5 : rest + 8] = sound[0, :2], sound[0, 2:5]
    signals[1, 2 * rest + 1 : 2 * rest + 5] = sound[1, :4]
    state = mimi.start(CONFIG, batch=2).encoder.convs
    want, _ = mimi.run("convolve", params, signals.reshape(2, -1), state, config=CONFIG)
    found = sounding.stretches(signals, rest)
    assert 4 * rest + 10 == (found.ends - found.begins).sum() < signals[..., 0].size

    def convolved(lanes: int) -> np.ndarray:
        monkeypatch.setattr(mimi, "cpu_frames", lambda _: lanes)
        return sounding.Convolutions(params, CONFIG)(signals)

    closeness.assert_close(convolved(4), want)
    closeness.assert_close(convolved(1), want)
    programs = sounding._chunk._cache_size()
    sounding.Convolutions(params, CONFIG)(signals[:, : 2 * rest + 7])
    assert sounding._chunk._cache_size() == programs
    monkeypatch.setattr(sounding, "reach", lambda _: rest - 2)
    assert np.abs(convolved(1) - want).max() > 1e-4


def test_elu_is_exact():
    x = np.concatenate([np.linspace(-20, 3, 9999), -np.logspace(-9, 0, 999)]).astype(np.float32)
    want = np.where(x > 0, x, np.expm1(x.astype(np.float64)))
    found = jax.jit(seanet.elu)(x)
    np.testing.assert_allclose(found, want, rtol=1e-6)  # exp(x) - 1 is off by all of small x


def test_the_compiled_functions_are_the_methods(params):
    _, codes, decoded = _whole(params, AUDIO)
    np.testing.assert_array_equal(mimi.run("encode", params, AUDIO, config=CONFIG), codes)
    np.testing.assert_allclose(mimi.run("decode", params, codes, config=CONFIG), decoded, atol=1e-6)


def test_a_frame_knows_its_own_audio_and_none_after_it(params):
    frame = 6

    def loudness(audio: jax.Array, params: dict) -> jax.Array:
        return jnp.sum(jnp.square(_round_trip(params, audio)[0][:, frame]))

    gradient = np.asarray(jax.jit(jax.grad(loudness))(AUDIO, params))
    assert np.all(gradient[:, (frame + 1) * FRAME :] == 0)
    assert np.all(gradient[:, frame * FRAME : (frame + 1) * FRAME] != 0)
    assert np.any(gradient[:, : (frame - CONFIG.context // 2) * FRAME] != 0)  # layers add up


def test_windowed_attention_equals_a_masked_one():
    W, N, H, steps = 4, 3, 6, 11
    q, k, v = jax.random.normal(jax.random.key(0), (3, B, steps, N, H))
    before = ((0, 0), (W, 0), (0, 0), (0, 0))
    found = jax.jit(transformer.windowed)(q, np.pad(k, before), np.pad(v, before), jnp.int32(0))
    distance = np.arange(steps)[:, None] - np.arange(steps)[None]
    logits = np.einsum("BTNH,BSNH->BNTS", q, k) * H**-0.5
    weights = np.exp(np.where((distance >= 0) & (distance < W), logits, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, np.einsum("BNTS,BSNH->BTNH", weights, v), atol=1e-5)


def test_each_level_takes_the_nearest_centroid_of_what_is_left(params):
    latents, codes, _ = map(np.asarray, _whole(params, AUDIO))
    levels = []
    for name, count in (("semantic", 1), ("acoustic", CONFIG.codebooks - 1)):
        branch = params["quantizer"][name]
        left = latents @ branch["input"]["kernel"]
        for level in range(count):
            centroids = branch["embedding_sum"][level] / branch["cluster_usage"][level][:, None]
            levels.append(np.argmin(np.linalg.norm(left[:, :, None] - centroids, axis=-1), axis=-1))
            left = left - centroids[levels[-1]]
    np.testing.assert_array_equal(codes, np.stack(levels, axis=1))


@pytest.mark.parametrize("used", [1, 2])
def test_fewer_codebooks_are_the_first_ones(params, used):
    latents, codes, _ = _whole(params, AUDIO)
    model = mimi.Mimi(dataclasses.replace(CONFIG, codebooks=used))
    quantize = jax.jit(functools.partial(model.apply, method="quantize"))
    np.testing.assert_array_equal(quantize({"params": params}, latents), codes[:, :used])
    dequantize = jax.jit(functools.partial(model.apply, method="dequantize"))
    assert dequantize({"params": params}, codes[:, :used]).shape == latents.shape


def test_the_real_size_has_the_parameters_of_the_released_file():
    config = schema.MimiConfig()
    init = mimi.Mimi(config).init
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, config.frame_samples)))
    count = sum(leaf.size for leaf in tree.flatten(shapes["params"]).values())
    flags = config.stored_codebooks
    assert count + flags == 96_151_393


@pytest.mark.parametrize("samples", [0, FRAME + 1])
def test_steps_refuse_parts_of_frames(params, samples):
    state = mimi.start(CONFIG, batch=B)
    with pytest.raises(ValueError, match=f"whole frames of {FRAME} samples, got {samples}"):
        mimi.run("encode_step", params, state, np.zeros((B, samples), np.float32), config=CONFIG)


def test_codes_out_of_range_are_not_mistaken_for_sound(params):
    codes = np.zeros((B, CONFIG.codebooks, T), np.int32)
    codes[0, 1, 4] = CONFIG.codes
    audio = np.asarray(mimi.run("decode", params, codes, config=CONFIG))
    assert np.all(np.isnan(audio[0, 4 * FRAME : 5 * FRAME]))
    assert np.all(np.isfinite(audio[1]))
