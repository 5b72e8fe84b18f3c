"""Whole conversations against the training forward, a hand table of the delays, and sessions."""

import dataclasses

import closeness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from mvjax import types
from mvjax.config import upstream
from mvjax.nn import layers
from mvjax.nn import model as model_lib
from mvjax.runtimes import interface
from mvjax.runtimes.jax import frames, generate
from mvjax.runtimes.jax import model as jax_model

MODEL = model_lib.VisionSpeech(toy.MODEL)
V, C = toy.MODEL.text_vocab, toy.MODEL.audio_vocab
FREE = types.UNGENERATED


def like(runtime):
    """The toy model as a runtime has it, with the norms left alone: one set of parameters for all."""
    stream = upstream.imitate(toy.MODEL, runtime).stream
    return model_lib.VisionSpeech(dataclasses.replace(toy.MODEL, stream=stream))


def split(codes):
    return codes[:, 0], codes[:, 1:4], codes[:, 4:]


@pytest.mark.parametrize("absent", [False, True])
def test_teacher_forcing_equals_the_training_forward(absent):
    codes = toy.codes()
    codes[1, 1:, 7:] = -1
    if absent:
        codes[1, 1:] = -1
        codes[0, 1:4] = -1
    text, audio, user = split(codes)
    has_image = np.array([True, False])
    kv = toy.apply("image_kv", toy.pixels())
    got = generate.generate(
        MODEL,
        toy.params(),
        user,
        kv,
        has_image,
        forced_text=text,
        forced_audio=audio,
        with_audio_logits=True,
    )
    want = toy.apply("__call__", codes, toy.pixels(), has_image, depth_codebooks=3)
    np.testing.assert_array_equal(got.text_ids, text)
    np.testing.assert_array_equal(got.audio_codes, audio)
    closeness.assert_close(got.text_logits, want.text_logits)
    np.testing.assert_allclose(got.gates, np.mean(want.gates, axis=0), atol=1e-6)
    np.testing.assert_allclose(got.layer_gates, np.moveaxis(want.gates, 0, 2), atol=1e-6)
    closeness.assert_close(got.audio_logits[:, :, 0], want.audio_logits[:, :, 0])
    # the engine also says the last frame of delayed levels, one call later
    closeness.assert_close(got.audio_logits[:, :-1, 1:], want.audio_logits[:, :-1, 1:])


def test_what_it_chose_is_what_the_training_forward_prefers():
    _, _, user = split(toy.codes())
    kv = toy.apply("image_kv", toy.pixels())
    got = generate.generate(MODEL, toy.params(), user, kv)
    codes = np.concatenate([got.text_ids[:, None], got.audio_codes, user], axis=1)
    want = toy.apply("__call__", codes, toy.pixels(), depth_codebooks=3)
    np.testing.assert_array_equal(got.text_ids, np.argmax(want.text_logits, -1))
    chosen = np.swapaxes(np.argmax(want.audio_logits, -1), 1, 2)
    np.testing.assert_array_equal(got.audio_codes[:, 0], chosen[:, 0])
    np.testing.assert_array_equal(got.audio_codes[:, 1:, :-1], chosen[:, 1:, :-1])
    assert got.audio_codes.max() < C and got.audio_codes.min() >= 0


def test_a_forced_prefix_is_kept_and_the_rest_goes_on_from_it():
    text, audio, user = split(toy.codes())
    whole = generate.generate(MODEL, toy.params(), user)
    forced_text, forced_audio = np.full_like(text, FREE), np.full_like(audio, FREE)
    forced_text[:, :4], forced_audio[:, :, :4] = text[:, :4], audio[:, :, :4]
    got = generate.generate(
        MODEL, toy.params(), user, forced_text=forced_text, forced_audio=forced_audio
    )
    np.testing.assert_array_equal(got.text_ids[:, :4], text[:, :4])
    np.testing.assert_array_equal(got.audio_codes[:, :, :4], audio[:, :, :4])
    assert np.any(got.text_ids[:, 4:] != whole.text_ids[:, 4:])
    same = generate.generate(
        MODEL,
        toy.params(),
        user,
        forced_text=got.text_ids.at[:, 5:].set(FREE),
        forced_audio=got.audio_codes.at[:, :, 5:].set(FREE),
    )
    np.testing.assert_array_equal(same.text_ids, got.text_ids)
    np.testing.assert_array_equal(same.audio_codes, got.audio_codes)


def test_image_seen_in_some_frames_only():
    _, _, user = split(toy.codes())
    kv = toy.apply("image_kv", toy.pixels())
    on = np.zeros((toy.B, toy.T), bool)
    blind = generate.generate(MODEL, toy.params(), user)
    off = generate.generate(MODEL, toy.params(), user, kv, image_on=on)
    np.testing.assert_array_equal(off.text_logits, blind.text_logits)
    on[0, 4:7] = True
    some = generate.generate(MODEL, toy.params(), user, kv, image_on=on)
    np.testing.assert_array_equal(some.gates > 0, on)
    np.testing.assert_array_equal(some.text_logits[:, :4], blind.text_logits[:, :4])
    assert np.abs(some.text_logits[0, 4] - blind.text_logits[0, 4]).max() > 1e-3


def stepped(config, user, **options):
    """Frames of a session of the JAX runtime; `user` is [U, T]."""
    session = jax_model.JaxModel(config, toy.params()).session(probes=True, **options)
    return [session.step(codes) for codes in user.T]


# audio vocabularies of their own: equal configs share a compiled program, into which nothing could be patched
@pytest.mark.parametrize(("runtime", "C"), [("kyuteye_mlx", 59), ("kyuteye_pt", 61)])
def test_delays_by_hand(monkeypatch, runtime, C):
    """Reference sections 5.2 and 5.3, both columns: user frame s holds 10 (s + 1) + stream."""
    entered, forced_ids = [], []
    real_backbone, real_depth = frames.backbone, frames.depth

    def backbone(config, weights, caches, column, *rest, **how):
        jax.debug.callback(lambda ids: entered.append(np.array(ids)), column, ordered=True)
        return real_backbone(config, weights, caches, column, *rest, **how)

    def depth(*args, forced):
        jax.debug.callback(lambda ids: forced_ids.append(np.array(ids)), forced, ordered=True)
        return real_depth(*args, forced=forced)

    monkeypatch.setattr(frames, "backbone", backbone)
    monkeypatch.setattr(frames, "depth", depth)
    config = dataclasses.replace(like(runtime).config, audio_vocab=C)
    weights = toy.params(dataclasses.replace(toy.MODEL, audio_vocab=C))
    session = jax_model.JaxModel(config, weights).session(probes=True)
    outs = [session.step(10 * (s + 1) + np.arange(3)) for s in range(4)]
    jax.effects_barrier()
    w = [out.text_token for out in outs]
    a = [np.argmax(out.probes.audio_logits, -1) for out in outs]  # as the depformer chose
    assert np.any(a[0][1:] != a[1][1:])
    V = toy.MODEL.text_vocab
    table = [  # text, semantic and two acoustic of the assistant
        [V, C, C, C],
        [w[0], a[0][0], C, C],
        [w[1], a[1][0], a[1][1], a[1][2]],
        [w[2], a[2][0], a[2][1], a[2][2]],
    ]
    heard = {  # the same of the user
        "kyuteye_mlx": [[C, C, C], [10, C, C], [20, 11, 12], [30, 21, 22]],
        "kyuteye_pt": [[C, C, C], [20, C, C], [30, 21, 22], [40, 31, 32]],
    }[runtime]
    table = np.concatenate([table, heard], axis=1)
    np.testing.assert_array_equal([ids[0] for ids in entered], table)
    # first-step forcing: the acoustic levels of call 0 are forced to C
    first = [FREE, FREE, FREE] if runtime == "kyuteye_pt" else [FREE, C, C]
    np.testing.assert_array_equal([ids[0] for ids in forced_ids], [first] + [[FREE] * 3] * 3)
    # codec frame f = (semantic of call f, acoustics of call f + 1)
    assert outs[0].audio_codes is None
    complete = [[a[s - 1][0], a[s][1], a[s][2]] for s in (1, 2, 3)]
    np.testing.assert_array_equal([out.audio_codes for out in outs[1:]], complete)


def test_an_early_user_is_a_user_whose_first_frame_is_lost():
    user = split(toy.codes())[2]
    got = generate.generate(like("kyuteye_pt"), toy.params(), user)
    later = np.concatenate([user[:, :, 1:], np.full_like(user[:, :, :1], -1)], axis=2)
    want = generate.generate(MODEL, toy.params(), later)
    np.testing.assert_array_equal(got.text_ids, want.text_ids)
    np.testing.assert_array_equal(got.audio_codes, want.audio_codes)
    other = user.copy()
    other[:, :, 0] = (other[:, :, 0] + 1) % C  # frame 0 is not heard
    same = generate.generate(like("kyuteye_pt"), toy.params(), other)
    np.testing.assert_array_equal(same.text_logits, got.text_logits)
    assert np.any(generate.generate(MODEL, toy.params(), other).text_logits != got.text_logits)


def test_first_step_forcing_changes_the_logits_of_call_0_alone():
    user = split(toy.codes())[2][0, :, :3]
    outs = {}
    for forcing in (True, False):
        stream = dataclasses.replace(toy.MODEL.stream, first_step_forcing=forcing)
        outs[forcing] = stepped(dataclasses.replace(toy.MODEL, stream=stream), user)
    (first, *rest), (free, *others) = outs[True], outs[False]
    one, other = first.probes.audio_logits, free.probes.audio_logits
    np.testing.assert_allclose(one[:2], other[:2], atol=1e-6)
    assert np.abs(one[2] - other[2]).max() > 1e-3
    for one, other in zip(rest, others):
        np.testing.assert_array_equal(one.audio_codes, other.audio_codes)
        np.testing.assert_allclose(one.probes.audio_logits, other.probes.audio_logits, atol=1e-6)


@pytest.mark.parametrize("runtime", ["ours", "kyuteye_pt"])
def test_a_session_equals_generate(runtime):
    user = split(toy.codes())[2]
    kv = toy.apply("image_kv", toy.pixels())
    has_image = jnp.array([True, False])
    module = like(runtime)
    want = generate.generate(module, toy.params(), user, kv, has_image, with_audio_logits=True)
    model = jax_model.JaxModel(module.config, toy.params())
    for b, image in enumerate((model.encode_image(toy.pixels()[:1]), None)):
        session = model.session(image, probes=True)
        for t in range(toy.T):
            out = session.step(user[b, :, t])
            assert out.text_token == want.text_ids[b, t]
            closeness.assert_close(out.probes.text_logits, want.text_logits[b, t])
            np.testing.assert_allclose(out.gate, want.gates[b, t], atol=1e-6)
            if t:
                np.testing.assert_array_equal(out.audio_codes, want.audio_codes[b, :, t - 1])
                closeness.assert_close(out.probes.audio_logits[1:], want.audio_logits[b, t - 1, 1:])


def test_continuation_of_unequal_prompts():
    lengths = np.array([4, 2, 1])
    prompts = toy.codes(batch=3, frames=4)[:, 0]
    kv = toy.apply("image_kv", toy.pixels(batch=3))
    weights = toy.params()
    got = generate.generate_text(MODEL, weights, prompts, lengths, kv, max_tokens=6)
    # greedy by running the training forward again and again
    row = np.full((3, 1, 10), -1, np.int32)
    for b, length in enumerate(lengths):
        row[b, 0, :length] = prompts[b, :length]
    pixels = jnp.asarray(toy.pixels(batch=3))
    text_logits = jax.jit(
        lambda p, ids: MODEL.apply({"params": p}, ids, pixels, depth_codebooks=0).text_logits
    )
    for _ in range(6):
        best = np.argmax(text_logits(weights, jnp.asarray(row)), -1)
        for b in range(3):
            end = np.argmax(row[b, 0] < 0)
            row[b, 0, end] = best[b, end]
    want = np.stack([row[b, 0, n : n + 6] for b, n in enumerate(lengths)])
    np.testing.assert_array_equal(got.ids, want)
    for b, length in enumerate(lengths):
        row[b, 0, length : length + 6] = want[b]
    gates = toy.apply("__call__", row, pixels, depth_codebooks=0).gates
    for b, length in enumerate(lengths):
        np.testing.assert_allclose(
            got.layer_gates[b, : length + 6], gates[:, b, : length + 6].T, atol=1e-6
        )
    stop = int(want[1, 2])
    stopped = generate.generate_text(
        MODEL, weights, prompts, lengths, kv, max_tokens=6, stop_ids=(stop,)
    ).ids
    for b in range(3):
        hits = np.flatnonzero(want[b] == stop)
        end = hits[0] if len(hits) else 6
        np.testing.assert_array_equal(stopped[b, :end], want[b, :end])
        assert np.all(stopped[b, end:] == -1)


def test_drawn_conversation_depends_on_the_key():
    _, _, user = split(toy.codes())
    draw = interface.Sampling(temperature=1.0, top_k=10)
    run = [
        generate.generate(
            MODEL,
            toy.params(),
            user,
            key=jax.random.key(seed),
            text_sampling=draw,
            audio_sampling=draw,
        )
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(run[0].audio_codes, run[1].audio_codes)
    assert np.any(run[0].audio_codes != run[2].audio_codes)


def test_the_greedy_choice_is_the_first_of_the_highest():
    logits = np.random.default_rng(0).integers(-3, 3, (40, 7)).astype(np.float32)
    np.testing.assert_array_equal(layers.argmax(jnp.asarray(logits)), logits.argmax(axis=1))
