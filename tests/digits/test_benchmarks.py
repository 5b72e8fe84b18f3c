"""The digits benchmark: what is asked, in whose voice, about which image, and how answers are scored."""

import dataclasses

import numpy as np
import pytest

from mvjax import files, types
from mvjax.config import schema
from mvjax.digits import benchmark, frozen_models, talk, voices, world
from mvjax.eval import benchmarks, metrics
from mvjax.eval import model as eval_model
from mvjax.weights import mimi

DIGITS = benchmark.DigitsBenchmark()
CONFIG = schema.Config(
    frozen=frozen_models.FROZEN, model=frozen_models.MODEL, codec=frozen_models.CODEC
)


@pytest.fixture(scope="module")
def questions():
    return DIGITS.questions(per_kind=4, seed=7)


class Oracle(eval_model.LoadedModel):
    """Reads the facts off the image it is given (by looking it up), or guesses a constant."""

    def answer_text(self, questions, images, *, has_image):
        known = {q.image.tobytes(): q.truth for q in self.params["asked"]}
        asked = {q.text: talk.WordedQuestion(q.kind, q.asked, q.text) for q in self.params["asked"]}
        rng = np.random.default_rng(0)
        guess = world.Facts(0, "red", "middle")
        return [
            talk.answer(asked[text], known[image.tobytes()] if has_image else guess, rng)
            for text, image in zip(questions, images, strict=True)
        ]


def _loaded(model, params):
    """A model without weights, for tests that replace what it computes."""
    codec = mimi.open_codec(files.resolve(CONFIG.frozen.codec), CONFIG.codec)
    return model(CONFIG, params, codec, None)


def test_questions_are_balanced_held_out_and_reproducible(questions):
    again = DIGITS.questions(per_kind=4, seed=7)
    # not the samples: eSpeak NG keeps a random state that cannot be set
    assert [(q.id, q.kind, q.asked, q.text, q.voice) for q in questions] == [
        (q.id, q.kind, q.asked, q.text, q.voice) for q in again
    ]
    assert len({q.id for q in questions}) == 24
    for kind in talk.KINDS:
        assert sum(q.kind == kind for q in questions) == 4
    test_scans = set(world.scan_indices("test").tolist())
    assert {q.scan for q in questions} <= test_scans
    held_out = {v.name for v in voices.TEST_USERS}
    assert {q.voice for q in questions} == held_out
    assert held_out.isdisjoint(v.name for v in voices.TRAIN_USERS)
    for kind in talk.KINDS:  # no kind belongs to one voice
        assert len({q.voice for q in questions if q.kind == kind}) == len(held_out)


def test_audio_is_silence_then_the_question_then_time_to_answer(questions):
    assert len({len(q.audio) for q in questions}) == 1
    for q in questions:
        before, after = q.start * types.FRAME_SAMPLES, 60 * types.FRAME_SAMPLES
        assert not q.audio[:before].any() and not q.audio[-after:].any()
        assert np.abs(q.audio).max() > 0.05


def test_shuffled_images_show_something_else(questions):
    for i, j in enumerate(benchmarks.shuffled(questions)):
        assert questions[i].truth != questions[j].truth
    alone = [dataclasses.replace(q, truth=questions[0].truth) for q in questions]
    with pytest.raises(ValueError, match="ask more questions"):
        benchmarks.shuffled(alone)


def test_an_oracle_is_right_with_its_image_and_only_then(questions):
    oracle = _loaded(Oracle, {"asked": questions})
    evaluation = benchmarks.evaluate(oracle, DIGITS, questions, ("text", "blind", "shuffled"))
    modes, rows = evaluation.answers, evaluation.table
    assert metrics.accuracy(modes["text"]) == 1.0
    assert metrics.accuracy(modes["blind"]) < 0.5
    assert metrics.accuracy(modes["shuffled"]) < 0.5
    assert evaluation.spoken is None
    assert [row["kind"] for row in rows] == [*talk.KINDS, "all"]
    assert rows[0]["chance"] == pytest.approx(0.1)
    assert rows[-1]["chance"] == pytest.approx(np.mean([r["chance"] for r in rows[:-1]]))


def test_spoken_answers_count_from_the_users_first_frame(questions):
    few = questions[:3]
    rng = np.random.default_rng(0)
    right = [talk.answer(talk.WordedQuestion(q.kind, q.asked, q.text), q.truth, rng) for q in few]
    given = {}

    class Speaker(eval_model.LoadedModel):
        def encode_audio(self, clips):
            return [np.full((8, len(c) // types.FRAME_SAMPLES), i) for i, c in enumerate(clips)]

        def converse(self, user_codes, images):
            given["images"] = images
            ids = np.zeros((len(user_codes), user_codes.shape[2]), np.int64)
            for row, i in zip(ids, user_codes[:, 0, 0], strict=True):
                row[few[i].start - 1] = 1  # a word too early
                row[few[i].start] = 2 + i
            return eval_model.Streams(ids, user_codes, user_codes)

        def decode_text(self, ids):
            return " ".join("hello" if i == 1 else right[i - 2] for i in ids if i)

    answers = benchmarks.evaluate(_loaded(Speaker, {}), DIGITS, few, ["audio"]).answers["audio"]
    assert [a.said for a in answers] == right and all(a.correct for a in answers)
    np.testing.assert_array_equal(given["images"], [q.image for q in few])
