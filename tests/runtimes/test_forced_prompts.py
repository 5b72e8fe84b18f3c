"""Prompts as forced frames, through every runtime: what enters, what is scored, what comes after."""

import exported
import numpy as np
import pytest
import test_runtimes as agreement_tests

from mvjax.runtimes import interface, prompts
from mvjax.runtimes.jax import model as jax_model

TOY = exported.TOY
_, USER = exported.inputs(7)
VOICE = np.random.default_rng(2).integers(0, 13, (3, 5))
PROMPT = prompts.personaplex(VOICE, [9, 8, 7], silence=(1, 2, 3), tone=(4, 5))


@pytest.fixture(scope="module", params=("jax", "torch"))
def opened(request, tmp_path_factory):
    return exported.in_runtime(request.param, tmp_path_factory.mktemp("export"))


def test_the_frames_are_those_of_nvidias_runtime():
    """Its first call only fills the cache, so frame 0 is lost."""
    assert PROMPT.text.tolist() == [3] * 4 + [3] * 6 + [9, 8, 7] + [3] * 6
    np.testing.assert_array_equal(PROMPT.assistant[:, :4], VOICE[:, 1:])
    assert PROMPT.assistant[:, 4:].T.tolist() == [[1, 2, 3]] * 15
    assert PROMPT.user.T.tolist() == [[4, 5]] * 19
    alone = prompts.personaplex(None, [])
    assert alone.text.tolist() == [3] * 11
    assert alone.assistant.shape == alone.user.shape == (8, 11)
    assert prompts.system(" Be kind. ") == prompts.system("<system> Be kind. <system>")
    assert prompts.system("Be kind.") == "<system> Be kind. <system>"


def test_a_prompt_is_in_the_past_of_the_conversation(opened):
    params, model = opened
    session = prompts.Prompted(model.session(probes=True), model.sizes, PROMPT)
    assert isinstance(session, interface.Session)
    frames = [*session.prompt_frames, *(session.step(codes) for codes in USER.T)]
    assert [frame.text_token for frame in frames[:19]] == PROMPT.text.tolist()
    spoken = np.stack([frame.audio_codes for frame in frames[1:20]], axis=1)
    np.testing.assert_array_equal(spoken, PROMPT.assistant)  # the last frame's, one call later
    if isinstance(
        model, jax_model.JaxModel
    ):  # test_interface.py has the other runtimes agree with it
        user = np.concatenate([PROMPT.user, USER], axis=1)
        agreement_tests.assert_agree(TOY, params, None, frames, user)
    free = model.session(probes=True)
    assert not np.allclose(free.step(USER[:, 0]).probes.hidden, frames[19].probes.hidden, atol=1e-2)
    session.reset()
    again = [*session.prompt_frames, *(session.step(codes) for codes in USER.T)]
    for one, other in zip(frames, again, strict=True):
        np.testing.assert_array_equal(one.audio_tokens, other.audio_tokens)


def test_codes_forced_by_the_caller_come_after_the_prompts(opened):
    _, model = opened
    session = prompts.Prompted(model.session(probes=True), model.sizes, PROMPT)
    forced = np.array([11, 10, 9])
    first, second = (session.step(codes, text=6, audio=forced) for codes in USER.T[:2])
    assert first.audio_tokens.tolist() == [
        11,
        2,
        3,
    ]  # levels 1 and 2 belong to the prompt's last frame
    assert second.audio_tokens.tolist() == [11, 10, 9]
    assert (first.text_token, second.text_token) == (6, 6)


def test_a_prompt_of_other_streams_is_refused(opened):
    with pytest.raises(ValueError, match="expected 3 and 2 codebooks .* got 8 and 8"):
        prompts.Prompted(opened[1].session(), opened[1].sizes, prompts.personaplex(None, []))
