"""The digits benchmark: what is asked, in whose voice, about which image, and how answers are scored."""

import dataclasses

import numpy as np
import pytest

from mvjax import files, types
from mvjax.digits import benchmark, recipe, talk, voices, world
from mvjax.eval import answering, asking, benchmarks, metrics, runner
from mvjax.eval import model as eval_model
from mvjax.weights import mimi

DIGITS = benchmark.DigitsBenchmark()
CONFIG = recipe.digits()


@pytest.fixture(scope="module")
def samples():
    return DIGITS.samples(24, 7)


def _oracle(samples):
    """What reads the facts off the image it is given (by looking it up), or guesses a constant."""
    known = {s.image().tobytes(): s.truth for s in samples}
    rng, guess = np.random.default_rng(0), world.Facts(0, "red", "middle")

    class Oracle(answering.Answerer):
        def __init__(self, model, protocol):
            assert protocol == DIGITS.protocol

        def prepare(self, sample, *, spoken):
            assert not spoken
            return asking.Written(16, 0, [sample], [], "image", [])

        def load(self, batch, images, rows):
            shown = [image and image() for image in images]
            return answering.Inputs(shown, [], [])

        def answer(self, batch, inputs, rows):
            pairs = zip(batch, inputs.images, strict=True)
            return [self._answer(one.tokens[0], image) for one, image in pairs]

        def _answer(self, sample, image):
            facts = guess if image is None else known[image.tobytes()]
            asked = talk.WordedQuestion(sample.kind, sample.asked, sample.prompt)
            said = talk.answer(asked, facts, rng)
            return answering.Answer(said, None, None, None, None, None)

    return Oracle


def test_questions_are_balanced_held_out_and_reproducible(samples):
    again = DIGITS.samples(25, 7)[:24]
    assert [(s.id, s.kind, s.asked, s.prompt, s.voice) for s in samples] == [
        (s.id, s.kind, s.asked, s.prompt, s.voice) for s in again
    ]
    np.testing.assert_array_equal(samples[5].speech(), again[5].speech())
    assert len({s.id for s in samples}) == 24
    for kind in talk.KINDS:
        assert sum(s.kind == kind for s in samples) == 4
    test_scans = set(world.scan_indices("test").tolist())
    assert {s.scan for s in samples} <= test_scans
    held_out = {v.name for v in voices.TEST_USERS}
    assert {s.voice for s in samples} == held_out
    assert held_out.isdisjoint(v.name for v in voices.TRAIN_USERS)
    for kind in talk.KINDS:  # no kind belongs to one voice
        assert len({s.voice for s in samples if s.kind == kind}) == len(held_out)
    assert len(DIGITS.samples(None, 7)) == 24 * len(talk.KINDS)


def test_spoken_questions_begin_within_a_frame(samples):
    late = []
    for sample in samples[:6]:
        audible = np.flatnonzero(np.abs(sample.speech()) > 1e-3)
        late.append(int(audible[0]))
    assert max(late) < 3 * types.FRAME_SAMPLES and len(set(late)) > 1


def test_shuffled_images_show_something_else(samples):
    for i, j in enumerate(benchmarks.shuffled(samples)):
        assert samples[i].truth != samples[j].truth
    alone = [dataclasses.replace(s, shows=samples[0].shows) for s in samples]
    with pytest.raises(ValueError, match="ask more questions"):
        benchmarks.shuffled(alone)


def test_an_oracle_is_right_with_its_image_and_only_then(samples, monkeypatch):
    monkeypatch.setattr(answering, "Answerer", _oracle(samples))
    codec = mimi.open_codec(files.resolve(CONFIG.frozen.codec), CONFIG.codec)
    model = eval_model.LoadedModel(CONFIG, {}, codec, None)
    evaluation = runner.evaluate(model, DIGITS, samples, ("text", "blind", "shuffled"))
    modes, rows = evaluation.answers, evaluation.table
    assert metrics.accuracy(modes["text"]) == 1.0
    assert metrics.accuracy(modes["blind"]) < 0.5
    assert metrics.accuracy(modes["shuffled"]) < 0.5
    assert [row["kind"] for row in rows] == [*talk.KINDS, "all"]
    assert rows[0]["chance"] == pytest.approx(0.1)
    assert rows[-1]["chance"] == pytest.approx(np.mean([r["chance"] for r in rows[:-1]]))


def test_a_spoken_question_and_the_time_for_its_answer_fit_into_96_frames(samples):
    """So that the quickstart compiles one spoken conversation."""
    for sample in samples:
        asked = asking.spoken(sample, DIGITS.protocol)
        assert (asked.size, asked.start, asked.last - asked.end) == (96, 4, 64)
        assert not asked.user[: 4 * types.FRAME_SAMPLES].any()
        assert not asked.user[asked.end * types.FRAME_SAMPLES :].any()
