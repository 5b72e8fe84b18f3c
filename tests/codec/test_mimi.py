"""Mimi: parity with `moshi`, streaming and chunks equal the whole, causality, sizes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import mimi_twin
import numpy as np
import pytest

from mvjax import config as config_lib
from mvjax import tree
from mvjax.codec import mimi, transformer
from mvjax.weights import mimi as mimi_weights

CONFIG, FRAME = mimi_twin.CONFIG, mimi_twin.FRAME
B, T = 2, 13


def _audio(samples: int = T * FRAME) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(B, samples)).astype(np.float32)


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


def _apply(params: dict, *args, method: str, config: config_lib.MimiConfig = CONFIG):
    return _compiled(method, config)({"params": params}, *args)


@functools.cache
def _compiled(method: str, config: config_lib.MimiConfig):
    return jax.jit(functools.partial(mimi.Mimi(config).apply, method=method))


def _twin(folder, config: config_lib.MimiConfig = CONFIG):
    """The PyTorch model, and its parameters through its file."""
    pytest.importorskip("torch")
    pytest.importorskip("moshi")
    from safetensors import torch as safetensors_torch

    model = mimi_twin.build(config)
    safetensors_torch.save_file(model.state_dict(), folder / "mimi.safetensors")
    return model, mimi_weights.load_mimi(folder / "mimi.safetensors", config)


@pytest.mark.parity
def test_whole_signals_agree_with_moshi(tmp_path):
    model, params = _twin(tmp_path)
    import torch

    audio = _audio(T * FRAME - 17)
    with torch.no_grad():
        x = torch.from_numpy(audio)[:, None]
        latents = model._encode_to_unquantized_latent(x).transpose(1, 2).numpy()
        codes = model.encode(x)
        quantised = model.decode_latent(codes).transpose(1, 2).numpy()
        decoded = model.decode(codes)[:, 0].numpy()
    assert codes.shape == (B, CONFIG.codebooks, T)
    assert len(np.unique(codes)) > 8
    np.testing.assert_allclose(_apply(params, audio, method="latents"), latents, atol=1e-4)
    np.testing.assert_array_equal(mimi.encode(params, audio, config=CONFIG), codes)
    ours = jnp.asarray(codes.numpy(), jnp.int32)
    np.testing.assert_allclose(_apply(params, ours, method="dequantise"), quantised, atol=1e-4)
    np.testing.assert_allclose(mimi.decode(params, ours, config=CONFIG), decoded, atol=1e-4)


@pytest.mark.parity
def test_streams_agree_with_moshi(tmp_path):
    # Within the context: past it, moshi's stream departs from moshi's whole signal (codec/transformer.py).
    frames = 4
    config = dataclasses.replace(CONFIG, context=2 * frames)
    model, params = _twin(tmp_path, config)
    import torch

    state = mimi.start(config, batch=B)
    with torch.no_grad(), model.streaming(B):
        for frame in np.split(_audio(frames * FRAME), frames, axis=1):
            codes = model.encode(torch.from_numpy(frame)[:, None])
            decoded = model.decode(codes)[:, 0].numpy()
            state, ours = mimi.encode_step(params, state, frame, config=config)
            np.testing.assert_array_equal(ours, codes)
            state, audible = mimi.decode_step(params, state, ours, config=config)
            np.testing.assert_allclose(audible, decoded, atol=1e-4)


@pytest.mark.parametrize("sizes", [(1,) * T, (3, 1, 7, 2)])
def test_streaming_equals_whole(params, sizes):
    audio = _audio()
    latents = _apply(params, audio, method="latents")
    codes = mimi.encode(params, audio, config=CONFIG)
    whole = mimi.decode(params, codes, config=CONFIG)
    encoder = mimi.start(CONFIG, batch=B).encoder
    state = mimi.start(CONFIG, batch=B)
    streamed, coded, heard, at = [], [], [], 0
    for size in sizes:
        chunk = audio[:, at * FRAME : (at + size) * FRAME]
        encoder, z = _apply(params, encoder, chunk, method="latents_step")
        state, ids = mimi.encode_step(params, state, chunk, config=CONFIG)
        state, y = mimi.decode_step(params, state, ids, config=CONFIG)
        streamed, coded, heard, at = [*streamed, z], [*coded, ids], [*heard, y], at + size
    np.testing.assert_allclose(np.concatenate(streamed, 1), latents, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate(coded, 2), codes)
    np.testing.assert_allclose(np.concatenate(heard, 1), whole, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, T])
def test_chunks_of_the_convolutions_change_nothing(params, monkeypatch, chunk):
    audio = _audio(T * FRAME - 5)
    codes = np.random.default_rng(2).integers(0, CONFIG.codes, (B, CONFIG.codebooks, T), np.int32)
    results = []
    for frames in (100, chunk):
        monkeypatch.setattr(mimi.Mimi, "_chunk", lambda self, b, n, f=frames: min(n, f))
        _compiled.cache_clear()
        results.append(
            (_apply(params, audio, method="latents"), _apply(params, codes, method="decode"))
        )
    assert results[0][0].shape == (B, T, CONFIG.latent)
    assert results[0][1].shape == (B, T * FRAME)
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_long_signals_are_cut_into_chunks_on_a_cpu():
    def chunk(batch: int, frames: int) -> int:
        return mimi.Mimi(config_lib.MimiConfig())._chunk(batch, frames)

    assert chunk(1, 4) == 4
    assert chunk(1, 100) == 8
    assert chunk(64, 100) == 1


def test_a_frame_knows_its_own_audio_and_none_after_it(params):
    frame = 6

    def loudness(audio: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(_apply(params, audio, method="latents")[:, frame]))

    gradient = np.asarray(jax.grad(loudness)(jnp.asarray(_audio())))
    assert np.all(gradient[:, (frame + 1) * FRAME :] == 0)
    assert np.all(np.any(gradient[:, frame * FRAME : (frame + 1) * FRAME] != 0, axis=1))
    # Steps reach context - 1 steps back in every layer, and the convolutions a little further.
    assert np.any(gradient[:, : (frame - CONFIG.context // 2) * FRAME] != 0)


def test_windowed_attention_equals_a_masked_one():
    W, N, H, steps = 4, 3, 6, 11
    q, k, v = jax.random.normal(jax.random.key(0), (3, B, steps, N, H))
    none = jnp.zeros((B, W, N, H))
    found = transformer.windowed(
        q, jnp.concatenate([none, k], 1), jnp.concatenate([none, v], 1), jnp.int32(0)
    )
    distance = np.arange(steps)[:, None] - np.arange(steps)[None]
    mask = (distance >= 0) & (distance < W)
    logits = jnp.where(mask[None, None], jnp.einsum("BTNH,BSNH->BNTS", q, k) * H**-0.5, -jnp.inf)
    expected = jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(logits), v)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_each_level_takes_the_nearest_centroid_of_what_is_left(params):
    latents = np.asarray(_apply(params, _audio(), method="latents"))
    codes = np.asarray(_apply(params, latents, method="quantise"))
    levels = []
    for name, count in (("semantic", 1), ("acoustic", CONFIG.codebooks - 1)):
        branch = params["quantiser"][name]
        left = latents @ branch["input"]["kernel"]
        for level in range(count):
            usage = np.maximum(branch["cluster_usage"][level], 1e-5)
            centroids = branch["embedding_sum"][level] / usage[:, None]
            levels.append(np.argmin(np.linalg.norm(left[:, :, None] - centroids, axis=-1), axis=-1))
            left = left - centroids[levels[-1]]
    np.testing.assert_array_equal(codes, np.stack(levels, axis=1))


def test_stored_codebooks_beyond_the_used_ones_do_not_matter(params):
    audio = _audio()
    codes = mimi.encode(params, audio, config=CONFIG)
    fewer = dataclasses.replace(CONFIG, codebooks=2)
    np.testing.assert_array_equal(mimi.encode(params, audio, config=fewer), codes[:, :2])
    semantic = dataclasses.replace(CONFIG, codebooks=1)
    np.testing.assert_array_equal(mimi.encode(params, audio, config=semantic), codes[:, :1])
    assert mimi.decode(params, codes[:, :1], config=semantic).shape == (B, T * FRAME)


def test_the_real_size_has_the_parameters_of_the_released_file():
    config = config_lib.MimiConfig()
    init = mimi.Mimi(config).init
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, mimi.frame_samples(config))))
    count = sum(leaf.size for leaf in tree.flatten(shapes["params"]).values())
    flags = config.stored_codebooks
    assert count + flags == 96_151_393


def test_steps_refuse_parts_of_frames(params):
    state = mimi.start(CONFIG, batch=B)
    for samples in (0, FRAME + 1):
        with pytest.raises(ValueError, match=f"whole frames of {FRAME} samples, got {samples}"):
            mimi.encode_step(params, state, _audio(samples), config=CONFIG)


def test_codes_out_of_range_are_not_mistaken_for_sound(params):
    codes = np.zeros((B, CONFIG.codebooks, T), np.int32)
    codes[0, 1, 4] = CONFIG.codes
    audio = np.asarray(mimi.decode(params, codes, config=CONFIG))
    assert np.all(np.isnan(audio[0, 4 * FRAME : 5 * FRAME]))
    assert np.all(np.isfinite(audio[1]))
