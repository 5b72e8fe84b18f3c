"""The codec interface: both backends do the same, whole and streamed, and what Rust refuses."""

import dataclasses
import sys

import closeness
import mimi_file
import mimi_twin
import numpy as np
import pytest

from mvjax.codec import mimi, rusty
from mvjax.config import schema
from mvjax.weights import codecs
from mvjax.weights import mimi as mimi_weights

B, T = 2, 3


def _audio(config: schema.MimiConfig, frames: int, batch: int = B) -> np.ndarray:
    samples = frames * config.frame_samples
    random = np.random.default_rng(1)
    return (random.standard_normal((batch, samples)) * 0.3).astype(np.float32)


def _streamed(stream, audio: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and decoded audio, frame by frame."""
    codes = [stream.encode(part) for part in np.split(audio, frames, axis=1)]
    return np.concatenate(codes, axis=2), np.concatenate([stream.decode(c) for c in codes], axis=1)


def test_the_flax_codec_is_mimi(tmp_path):
    config = mimi_twin.CONFIG
    mimi_file.write_random(tmp_path / "mimi.safetensors", config)
    codec = mimi_weights.open_codec(tmp_path / "mimi.safetensors", config)
    params = mimi_weights.load_mimi(tmp_path / "mimi.safetensors", config)
    audio = _audio(config, T)
    codes = codec.encode(audio)
    assert isinstance(codes, np.ndarray) and codes.shape == (B, config.codebooks, T)
    np.testing.assert_array_equal(codes, mimi.run("encode", params, audio, config=config))
    decoded = codec.decode(codes)
    whole = mimi.run("decode", params, codes, config=config)
    closeness.assert_close(decoded, whole)
    silent = np.pad(audio, ((0, 0), (0, 20 * config.frame_samples)))
    whole = mimi.run("encode", params, silent, config=config)
    np.testing.assert_array_equal(codec.encode(silent), whole)
    stream = codec.stream(batch=B)
    for again in (codec.stream(batch=B), stream, stream):  # a second stream, or one reset
        streamed, sound = _streamed(again, audio, T)
        np.testing.assert_array_equal(streamed, codes)
        np.testing.assert_allclose(sound, decoded, atol=1e-5)
        again.reset()


def test_a_cpu_decodes_every_length_with_one_program(tmp_path, monkeypatch):
    config = mimi_twin.CONFIG
    mimi_file.write_random(tmp_path / "mimi.safetensors", config)
    codec = mimi_weights.open_codec(tmp_path / "mimi.safetensors", config)
    monkeypatch.setattr(mimi, "cpu_frames", lambda config: 3)
    codes = np.random.default_rng(0).integers(0, config.codes, (2, config.codebooks, 8), np.int32)
    codec.decode(codes[:1, :, :3])
    before = mimi.run._cache_size()
    decoded = {T: codec.decode(codes[:, :, :T]) for T in (1, 4, 8)}
    assert mimi.run._cache_size() == before
    for T, audio in decoded.items():
        np.testing.assert_array_equal(audio, decoded[8][:, : T * config.frame_samples])


def test_rust_refuses_other_sizes_by_name(tmp_path):
    config = dataclasses.replace(schema.MimiConfig(codebooks=4), latent=128, codes=256)
    with pytest.raises(ValueError, match=r"latent=128 \(released: 512\), codes=256 .*Flax codec"):
        rusty.RustyCodec(tmp_path / "mimi.safetensors", config)


def test_without_the_package_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rustymimi", None)
    codec = rusty.RustyCodec(tmp_path / "mimi.safetensors", schema.MimiConfig())
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mvjax\[serve\]'"):
        codec.stream()


@pytest.mark.parity
@pytest.mark.slow
def test_rust_agrees_with_flax_at_the_real_size(tmp_path):
    """A file that we write, 385 MB, read by both: the same codes, and audio to 1e-4."""
    pytest.importorskip("rustymimi")
    config = schema.MimiConfig()
    path = tmp_path / "mimi.safetensors"
    mimi_file.write_random(path, config)
    ours, theirs = mimi_weights.open_codec(path, config), codecs.open_codec(path)
    assert isinstance(theirs, rusty.RustyCodec)
    audio = _audio(config, T)
    codes = ours.encode(audio)
    assert len(np.unique(codes)) > 2 * B * T
    np.testing.assert_array_equal(theirs.encode(audio), codes)
    np.testing.assert_array_equal(theirs.encode(audio[:, :-100])[:, :, :-1], codes[:, :, :-1])
    decoded = ours.decode(codes)
    np.testing.assert_allclose(theirs.decode(codes), decoded, atol=1e-4)
    for _ in range(2):
        stream = theirs.stream(batch=B)
        streamed, sound = _streamed(stream, audio, T)
        np.testing.assert_array_equal(streamed, codes)
        np.testing.assert_allclose(sound, decoded, atol=1e-4)
    stream.reset()  # the first frame follows silence; the others know nothing of what was before
    streamed, _ = _streamed(stream, audio, T)
    np.testing.assert_array_equal(streamed[:, :, 1:], codes[:, :, 1:])
    stream.reset()
    np.testing.assert_allclose(
        np.concatenate([stream.decode(codes[:, :, t : t + 1]) for t in range(T)], axis=1),
        decoded,
        atol=1e-4,
    )
    with pytest.raises(ValueError, match="expected 2 rows as at its start, got 1"):
        stream = theirs.stream(batch=B)
        stream.encode(audio[:1, : config.frame_samples])


@pytest.mark.parity
@pytest.mark.slow
def test_rust_has_one_step_more_in_its_window(tmp_path):
    """Past 10 s the context is full, and only `context_has_self=False` agrees."""
    pytest.importorskip("rustymimi")
    rust = schema.MimiConfig(context_has_self=False)
    path = tmp_path / "mimi.safetensors"
    mimi_file.write_random(path, rust)
    theirs = rusty.RustyCodec(path, rust)
    frames, full = 160, rust.context // 2  # two steps a frame
    codes = np.random.default_rng(2).integers(0, rust.codes, (1, rust.codebooks, frames), np.int32)
    sound = theirs.decode(codes)
    errors = {}
    for has_self in (True, False):
        config = dataclasses.replace(rust, context_has_self=has_self)
        ours = mimi_weights.open_codec(path, config).decode(codes)
        error = np.abs(ours - sound).reshape(frames, -1).max(axis=1)
        assert error[:full].max() < 1e-4
        errors[has_self] = error[full:].max()
    assert errors[False] < 1e-4 < 3e-4 < errors[True], errors


@pytest.mark.long
def test_a_stream_goes_on_as_before_past_the_packages_default_of_8192_steps(tmp_path):
    """Only what lies in its windows matters: the end decodes as it does in a short stream."""
    pytest.importorskip("rustymimi")
    path = tmp_path / "mimi.safetensors"
    mimi_file.write_random(path, schema.MimiConfig())
    frames, tail = 4125, 1000  # 5.5 minutes; 8 layers reach back 80 s
    codes = np.random.default_rng(3).integers(0, 2048, (1, 8, frames), np.int32)
    codec = codecs.open_codec(path, minutes=5.5)
    long, short = codec.stream(), codec.stream()
    late = [long.decode(codes[:, :, n : n + 25]) for n in range(0, frames, 25)]
    again = [short.decode(codes[:, :, n : n + 25]) for n in range(frames - tail, frames, 25)]
    assert np.abs(late[-1]).max() > 0.1
    np.testing.assert_allclose(late[-1], again[-1], atol=1e-4)
    with pytest.raises(
        ValueError, match="5.5 minutes to decode are over; open the codec with more"
    ):
        long.decode(codes[:, :, :1])
