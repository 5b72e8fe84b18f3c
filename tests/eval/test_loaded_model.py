"""The model under test at toy size: batching changes nothing, words and clips keep their places."""

import numpy as np
import pytest
import small_speaker

from mvjax.dialogues import speech
from mvjax.digits import world
from mvjax.eval import model as eval_model
from mvjax.eval import switching

MODEL, Q, FRAME = small_speaker.MODEL, small_speaker.Q, small_speaker.FRAME


@pytest.fixture(scope="module")
def toy() -> eval_model.LoadedModel:
    return small_speaker.loaded()


def _pictures(n: int) -> np.ndarray:
    return np.stack([s.image for s in world.scenes("test", n, 0)])


def test_words_skip_silence_and_know_their_frame(toy):
    m, tokenizer = MODEL, toy.tokenizer
    seven, red = tokenizer.encode("seven"), tokenizer.encode("red")
    ids = np.array([m.text_pad, m.text_epad, *seven, m.text_pad, -1, *red, m.text_pad])
    assert toy.decode_text(ids) == "seven red"
    assert toy.timed_words(ids) == [("seven", 2), ("red", 4 + len(seven))]
    spelled = tokenizer.encode("qx")  # no piece of its own: letters
    assert len(spelled) > 1 and toy.timed_words(np.array(spelled)) == [("qx", 0)]


def test_clips_keep_their_order_and_length(toy, monkeypatch):
    rng = np.random.default_rng(1)
    sizes = [3 * FRAME, 2 * FRAME - 5, 7 * FRAME]
    clips = [rng.standard_normal(n).astype(np.float32) for n in sizes]
    monkeypatch.setattr(eval_model, "_CODEC_BATCH_SIZE", 2)
    together = toy.encode_audio(clips)
    assert [c.shape for c in together] == [(Q, 3), (Q, 2), (Q, 7)]
    for clip, codes in zip(clips, together, strict=True):
        np.testing.assert_array_equal(toy.encode_audio([clip])[0], codes)
    sounds = toy.decode_audio(together)
    assert [len(s) for s in sounds] == [3 * FRAME, 2 * FRAME, 7 * FRAME]
    nothing = np.zeros((Q, 0), np.int32)
    assert [len(s) for s in toy.decode_audio([nothing, together[1]])] == [0, 2 * FRAME]
    assert [s.shape for s in toy.decode_audio([nothing, nothing])] == [(0,), (0,)]
    assert toy.decode_audio([]) == toy.encode_audio([]) == []


def test_a_conversation_is_traced_by_topic(toy):
    voice = speech.Voice("en-us")
    script = [("image", "what is it"), ("small talk", "hello")]
    trace = switching.converse(toy, script, _pictures(1)[0], voice)
    first, second = trace.exchanges
    T = trace.activation.shape[1]
    assert first.frames[0] == 0 and first.frames[1] == second.frames[0] and second.frames[1] == T
    assert trace.activation.shape == (3, T) and len(trace.audio) == T * FRAME
    assert [e.topic for e in trace.exchanges] == ["image", "small talk"]
    said = [w for w, f in trace.words if f < first.frames[1]]
    assert first.said.split() == said
    for exchange in trace.exchanges:
        frames = [f for _, f in trace.words if exchange.frames[0] <= f < exchange.frames[1]]
        assert exchange.answered == ((frames[0], frames[-1] + 1) if frames else None)
        assert exchange.frames[0] <= exchange.asked[0] < exchange.asked[1] < exchange.frames[1]
    for exchange in (e for e in trace.exchanges if e.said):
        assert 0 < exchange.activation <= exchange.peak < 1


def test_mean_activations_ignore_silence():
    nan = float("nan")
    exchanges = [
        switching.Exchange("image", "q", "a", (0, 3), (0, 1), (1, 2), 0.2, 0.5),
        switching.Exchange("image", "q", "b", (3, 5), (3, 4), (4, 5), 0.4, 0.6),
        switching.Exchange("image", "q", "", (5, 7), (5, 6), None, nan, nan),
        switching.Exchange("small talk", "q", "", (7, 8), (7, 8), None, nan, nan),
    ]
    trace = switching.GateTrace(exchanges, np.zeros((2, 8)), [], np.zeros(8))
    assert trace.mean_activation("image") == pytest.approx(0.3)
    assert trace.mean_peak("image") == pytest.approx(0.55)
    assert np.isnan(trace.mean_activation("small talk"))
