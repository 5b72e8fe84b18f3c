"""Conversations that share a batch, in every runtime: each is as it is alone, and its ids are as defined."""

import closeness
import exported
import jax
import numpy as np
import pytest

from mvjax.runtimes import interface, sampling

RUNTIMES = ("jax", "torch", "mlx")
FRAMES = 12  # more than twice the context
PIXELS, USER = exported.inputs(FRAMES)
TEXT = interface.Sampling(
    temperature=2.0,
    top_k=7,
    repetition_penalty=1.7,
    repetition_penalty_context=4,
    pad_multiplier=-1.5,
)
AUDIO = interface.Sampling(temperature=1.5, top_k=5)


@pytest.fixture(scope="module", params=RUNTIMES)
def model(request, tmp_path_factory):
    return exported.in_runtime(request.param, tmp_path_factory.mktemp("export"))[1]


def assert_as_alone(alone, together):
    assert len(alone) == len(together)
    for one, other in zip(alone, together):
        assert one.text_token == other.text_token
        np.testing.assert_array_equal(one.audio_tokens, other.audio_tokens)
        np.testing.assert_array_equal(one.audio_codes, other.audio_codes)
        for name in ("text_logits", "audio_logits", "gates", "hidden"):
            pair = getattr(one.probes, name), getattr(other.probes, name)
            # sums are added in another order, in every layer of two transformers
            closeness.assert_close(*pair, closeness.COMPOSED, where=name)


def test_conversations_of_a_batch_are_as_they_are_alone(model):
    """They join, leave, reset, wait and change images at different frames, past the context."""
    one, other = model.encode_image(PIXELS), model.encode_image(-PIXELS)
    how = {"text_sampling": TEXT, "audio_sampling": AUDIO}

    def alone(image, user, seed, *, swap=None):
        session, said = model.session(image, seed=seed, probes=True, **how), []
        for s, codes in enumerate(user.T):
            if swap and s == swap[0]:
                session.show(swap[1])
            said.append(session.step(codes))
        return said

    slots = model.slots(3, probes=True)
    slots.warm_up()
    assert (slots.size, slots.free) == (3, 3)
    said = {name: [] for name in "abcd"}
    a = slots.join(one, seed=1, **how)
    place, user = {"a": a}, {"a": USER, "b": USER[:, ::-1], "c": USER, "d": USER[:, ::-1]}
    for call in range(FRAMES + 5):
        if call == 2:
            place["b"] = slots.join(None, seed=2, **how)
            slots.show(place["b"], one)
            slots.show(place["b"], None)
        if call == 3:
            place["c"] = slots.join(other, seed=3, **how)
            with pytest.raises(RuntimeError, match="all 3 slots are taken"):
                slots.join()
        if call == 8:  # what c said so far is another conversation
            slots.reset(place["c"])
            said["c"].clear()
        if call == 9:
            slots.show(place["a"], other)
        if call == 11:
            slots.leave(place.pop("b"))
            place["d"] = slots.join(one, seed=4, **how)
        waits = {"c"} if call in (5, 10) else set()
        turns = {
            slot: interface.Turn(user[name][:, len(said[name])])
            for name, slot in place.items()
            if name not in waits and len(said[name]) < FRAMES
        }
        frames = slots.step(turns)
        assert frames.keys() == turns.keys()
        for name, slot in place.items():
            if slot in frames:
                said[name].append(frames[slot])
    assert [len(frames) for frames in said.values()] == [12, 9, 8, 6]
    assert_as_alone(alone(one, user["a"], 1, swap=(9, other)), said["a"])
    assert_as_alone(alone(None, user["b"][:, :9], 2), said["b"])
    assert_as_alone(alone(other, user["c"][:, :8], 3), said["c"])
    assert_as_alone(alone(one, user["d"][:, :6], 4), said["d"])
    assert min(frame.gate for frame in said["a"]) > 0
    assert {frame.gate for frame in said["b"]} == {0.0}
    with pytest.raises(ValueError, match="slot 3: there is no conversation"):
        slots.leave(3)


def test_a_row_without_an_image_is_exactly_plain_moshi(model):
    def say(image):
        slots = model.slots(2, probes=True)
        slots.join(image)
        slots.join(None)
        return [slots.step({s: interface.Turn(c) for s in (0, 1)})[1] for c in USER.T]

    for one, other in zip(say(model.encode_image(PIXELS)), say(None), strict=True):
        for name in ("text_logits", "audio_logits", "hidden", "gates"):
            np.testing.assert_array_equal(getattr(one.probes, name), getattr(other.probes, name))


def test_what_is_not_finite_stays_in_its_conversation(model):
    slots, one = model.slots(2, probes=True), model.encode_image(PIXELS)
    overflowed = jax.tree.map(lambda x: x * float("nan"), one)
    turn = interface.Turn(USER[:, 0])
    slot = slots.join(overflowed)
    assert not np.isfinite(slots.step({slot: turn})[slot].probes.hidden).all()
    for image in (one, None):
        slots.leave(slot)
        assert slots.join(image) == slot
        assert_as_alone(
            [model.session(image, probes=True).step(turn.user_codes)],
            [slots.step({slot: turn})[slot]],
        )
    slots.show(slot, overflowed)
    slots.step({slot: turn})
    slots.show(slot, None)
    slots.reset(slot)
    assert_as_alone(
        [model.session(probes=True).step(turn.user_codes)], [slots.step({slot: turn})[slot]]
    )


def test_ids_are_sampled_as_defined(model):
    """Each row has its own settings; one penalizes, one draws from all ids, one is greedy."""
    settings = [
        (TEXT, AUDIO),
        (interface.Sampling(temperature=3.0), interface.Sampling(temperature=0.7, top_k=2)),
        (interface.Sampling(repetition_penalty=50.0, repetition_penalty_context=9), AUDIO),
        (interface.Sampling(temperature=1.0, pad_multiplier=9.0), interface.GREEDY),
    ]
    slots, samplers = model.slots(len(settings), probes=True), []
    for seed, (text, audio) in enumerate(settings):
        slots.join(text_sampling=text, audio_sampling=audio, seed=seed)
        samplers.append(sampling.Sampler(text, audio, seed=seed, codebooks=3))
    ids = [set() for _ in settings]
    for s in range(3 * FRAMES):
        codes = USER[:, s % FRAMES]
        frames = slots.step({slot: interface.Turn(codes) for slot in range(len(settings))})
        draws = sampling.greedy(len(settings), 3)
        for row, sampler in enumerate(samplers):
            sampler.write(draws, row)
            frame, (text, audio) = frames[row], settings[row]
            bonus = text.pad_multiplier * text.temperature
            logits = sampling.penalized(
                frame.probes.text_logits, draws.recent[row], text.repetition_penalty, bonus
            )
            want = [
                sampling.choose(logits, float(draws.uniform[row, 0]), text.temperature, text.top_k)
            ]
            want += [
                sampling.choose(
                    frame.probes.audio_logits[q],
                    float(draws.uniform[row, 1 + q]),
                    audio.temperature,
                    audio.top_k,
                )
                for q in range(3)
            ]
            forced = 2 if s == 0 else 0  # the delayed levels, which begin with the initial id
            assert [frame.text_token, *frame.audio_tokens[: 3 - forced]] == want[: 4 - forced]
            sampler.said(frame.text_token)
            ids[row].add(frame.text_token)
    assert (
        len(ids[2]) > 3 and len(ids[1]) > 10
    )  # greedy decoding repeats itself but for the penalty
    assert sampling.PAD in ids[3]


def test_a_turn_that_cannot_be_changes_nothing(model):
    """Every turn is checked before any is stepped, so the others say what they say without it."""
    how = {"text_sampling": TEXT, "audio_sampling": AUDIO, "seed": 1}
    session, slots = model.session(probes=True, **how), model.slots(3, probes=True)
    good, other = slots.join(**how), slots.join(**how)
    users, audio = len(USER), np.full(3, 14)
    wrong = [
        (interface.Turn(np.zeros(users + 1, int)), r"user_codes: expected integers of shape"),
        (interface.Turn(np.zeros(users)), "got float64"),
        (
            interface.Turn(np.full(users, 99)),
            "user_codes: expected ids from -1 to 13, got 99 to 99",
        ),
        (
            interface.Turn(np.zeros(users, int), -7, audio),
            "text: .* got -7 to -7; audio: .* got 14",
        ),
    ]
    alone, together = [], []
    for s, codes in enumerate(USER.T[:4]):
        turn, told = wrong[s]
        with pytest.raises(ValueError, match=told):
            slots.step({good: interface.Turn(codes), other: turn})
        alone.append(session.step(codes))
        together.append(slots.step({good: interface.Turn(codes)})[good])
    assert_as_alone(alone[1:], together[1:])


def test_what_is_nearly_cold_is_greedy():
    sampler = sampling.Sampler(
        interface.Sampling(temperature=1e-38),
        interface.Sampling(temperature=1e-3),
        seed=0,
        codebooks=3,
    )
    draws = sampling.greedy(1, 3)
    sampler.write(draws, 0)
    assert draws.temperature.tolist() == [[0.0, np.float32(1e-3)]]


@pytest.mark.parametrize(
    "pixels", [PIXELS * np.nan, PIXELS * 255, np.zeros(PIXELS.shape, np.uint8)]
)
def test_pixels_out_of_range_are_refused(model, pixels):
    with pytest.raises(ValueError, match=r"expected floats in \[-1, 1\]"):
        model.sizes.check_pixels(pixels)
