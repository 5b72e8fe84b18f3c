"""Every runtime through the same checks of `interface`: images, forced tokens, sampling, reset, probes."""

import exported
import numpy as np
import pytest
import test_runtimes as agreement_tests

from mvjax import types
from mvjax.export import agreement
from mvjax.runtimes import interface, loading

TOY, FRAMES = exported.TOY, 12  # more than twice the context
PIXELS, USER = exported.inputs(FRAMES)
RUNTIMES = ("jax", "torch", "mlx", "candle")
HOT = interface.Sampling(temperature=2.0, top_k=5)


@pytest.fixture(scope="module", params=RUNTIMES)
def opened(request, tmp_path_factory):
    return exported.in_runtime(request.param, tmp_path_factory.mktemp("export"))


def run(session, user=USER, **forced):
    return [session.step(codes, **forced) for codes in user.T]


def tokens(frames):
    return [(frame.text_token, *frame.audio_tokens.tolist()) for frame in frames]


def test_sizes(opened):
    sizes = opened[1].sizes
    assert (sizes.delays, sizes.codebooks_out, sizes.codebooks_user) == (TOY.delays, 3, 2)
    assert (sizes.text_vocab, sizes.audio_vocab, sizes.image_size) == (37, 13, 12)


def test_agrees_with_the_training_forward_with_and_without_an_image(opened):
    params, model = opened
    seen = agreement.talk(model, PIXELS, USER)
    agreement_tests.assert_agree(TOY, params, PIXELS, seen, USER)
    blind = run(model.session(probes=True))
    agreement_tests.assert_agree(TOY, params, None, blind, USER)
    assert [frame.gate for frame in blind] == [0.0] * FRAMES
    assert min(frame.gate for frame in seen) > 0
    assert not np.allclose(blind[0].probes.text_logits, seen[0].probes.text_logits, atol=1e-2)


def test_absent_user_codes_add_nothing(opened):
    params, model = opened
    user = USER.copy()
    user[:, 3:7] = -1
    frames = run(model.session(probes=True), user)
    agreement_tests.assert_agree(TOY, params, None, frames, user)


def test_the_image_may_change_in_mid_conversation(opened):
    _, model = opened
    one, other = model.encode_image(PIXELS), model.encode_image(-PIXELS)
    shown = {
        "kept": [one] * FRAMES,
        "swapped": [one] * 3 + [other] * 9,
        "dropped": [one] * 3 + [None] * 3 + [one] * 6,
    }
    logits = {}
    for name, images in shown.items():
        session, frames = model.session(probes=True), []
        for image, codes in zip(images, USER.T, strict=True):
            session.show(image)
            frames.append(session.step(codes, text=1, audio=np.zeros(3, int)))
        assert [frame.gate > 0 for frame in frames] == [image is not None for image in images]
        logits[name] = exported.stacked(frames, "text_logits")
    for name in ("swapped", "dropped"):
        np.testing.assert_array_equal(logits[name][:3], logits["kept"][:3])
        assert np.abs(logits[name][3:] - logits["kept"][3:]).max(axis=1).min() > 1e-4


def test_forced_tokens(opened):
    _, model = opened
    image = model.encode_image(PIXELS)
    drawn = run(model.session(image, text_sampling=HOT, audio_sampling=HOT, seed=3, probes=True))
    session = model.session(image, probes=True)
    forced = [
        session.step(codes, text=frame.text_token, audio=frame.audio_tokens)
        for codes, frame in zip(USER.T, drawn)
    ]
    assert tokens(forced) == tokens(drawn)
    for name in ("text_logits", "audio_logits", "hidden"):
        np.testing.assert_array_equal(exported.stacked(forced, name), exported.stacked(drawn, name))
    assert forced[0].audio_codes is None
    for one, other in zip(forced[1:], drawn[1:]):
        np.testing.assert_array_equal(one.audio_codes, other.audio_codes)
    # level 1 is left to the model
    session = model.session(image)
    partly = [session.step(c, audio=np.array([1, types.UNGENERATED, 2])) for c in USER.T]
    said = np.stack([frame.audio_tokens for frame in partly[1:]])
    assert set(said[:, 0]) == {1} and set(said[:, 2]) == {2} and len(set(said[:, 1])) > 1


def test_codec_frames_are_the_undelayed_audio(opened):
    frames = run(opened[1].session())
    audio = np.stack([frame.audio_tokens for frame in frames])
    for s in range(1, FRAMES):
        np.testing.assert_array_equal(frames[s].audio_codes, [audio[s - 1, 0], *audio[s, 1:]])
    np.testing.assert_array_equal(audio[0, 1:], [13, 13])  # before frame 0: the initial id


def test_reset_and_seeds(opened):
    _, model = opened
    hot = {"text_sampling": HOT, "audio_sampling": HOT}
    session = model.session(model.encode_image(PIXELS), seed=3, **hot)
    first = tokens(run(session))
    session.reset()
    assert tokens(run(session)) == first
    again = model.session(model.encode_image(PIXELS), seed=3, **hot)
    assert tokens(run(again)) == first
    other = model.session(model.encode_image(PIXELS), seed=4, **hot)
    assert tokens(run(other)) != first


def test_text_and_audio_have_their_own_sampling(opened):
    _, model = opened
    greedy = model.session(probes=True)
    hot_text = model.session(text_sampling=HOT, probes=True)
    hot_audio = model.session(audio_sampling=HOT, probes=True)
    for session, text, audio in ((greedy, 0, 0), (hot_text, 1, 0), (hot_audio, 0, 1)):
        frames = run(session)
        best = exported.stacked(frames, "text_logits").argmax(-1)
        assert np.any([frame.text_token for frame in frames] != best) == text
        best = exported.stacked(frames, "audio_logits").argmax(-1)[1:]
        assert np.any([frame.audio_tokens for frame in frames[1:]] != best) == audio


def test_probes_are_on_request(opened):
    _, model = opened
    image = model.encode_image(PIXELS)
    plain, probed = run(model.session(image)), run(model.session(image, probes=True))
    assert tokens(plain) == tokens(probed)
    assert {frame.probes for frame in plain} == {None}
    np.testing.assert_allclose(
        [frame.gate for frame in plain], [frame.gate for frame in probed], atol=1e-6
    )
    for frame in probed:
        probes = frame.probes
        assert probes.text_logits.shape == (37,) and probes.audio_logits.shape == (3, 13)
        assert probes.gates.shape == (3,) and probes.hidden.shape == (3, 24)
        assert frame.gate == pytest.approx(probes.gates.mean(), abs=1e-6)


def test_sessions_do_not_influence_each_other(opened):
    _, model = opened
    image = model.encode_image(PIXELS)
    alone = [tokens(run(model.session(image))), tokens(run(model.session(), USER[:, ::-1]))]
    one, other = model.session(image), model.session()
    turns = [(one.step(a), other.step(b)) for a, b in zip(USER.T, USER.T[::-1])]
    assert [tokens(frames) for frames in zip(*turns)] == alone


def test_an_image_of_another_size_is_refused(opened):
    with pytest.raises(ValueError, match=r"expected \[1, 12, 12, 3\], got \[1, 8, 12, 3\]"):
        opened[1].encode_image(np.zeros((1, 8, 12, 3), np.float32))


def test_a_folder_that_is_no_export(tmp_path):
    with pytest.raises(
        ValueError, match="found none of them; give a folder that `mvjax export` wrote"
    ):
        loading.open_folder(tmp_path)
