"""The digits benchmark: what is asked, in whose voice, about which image, and how answers are scored."""

import dataclasses

import numpy as np
import pytest

from mvjax import files, types
from mvjax.config import schema
from mvjax.digits import benchmark, frozen_models, talk, voices, world
from mvjax.eval import benchmarks, metrics, runner
from mvjax.eval import model as eval_model
from mvjax.weights import mimi

DIGITS = benchmark.DigitsBenchmark()
CONFIG = schema.Config(
    frozen=frozen_models.FROZEN, model=frozen_models.MODEL, codec=frozen_models.CODEC
)


@pytest.fixture(scope="module")
def samples():
    return DIGITS.samples(24, 7)


class Oracle(eval_model.LoadedModel):
    """Reads the facts off the image it is given (by looking it up), or guesses a constant."""

    def answer_text(self, questions, images, *, has_image):
        known = {s.image().tobytes(): s.truth for s in self.params["asked"]}
        asked = {
            s.prompt: talk.WordedQuestion(s.kind, s.asked, s.prompt) for s in self.params["asked"]
        }
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


def test_questions_are_balanced_held_out_and_reproducible(samples):
    again = DIGITS.samples(25, 7)[:24]
    # not the speech: eSpeak NG keeps a random state that cannot be set
    assert [(s.id, s.kind, s.asked, s.prompt, s.voice) for s in samples] == [
        (s.id, s.kind, s.asked, s.prompt, s.voice) for s in again
    ]
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


def test_an_oracle_is_right_with_its_image_and_only_then(samples):
    oracle = _loaded(Oracle, {"asked": samples})
    evaluation = runner.evaluate(oracle, DIGITS, samples, ("text", "blind", "shuffled"))
    modes, rows = evaluation.answers, evaluation.table
    assert metrics.accuracy(modes["text"]) == 1.0
    assert metrics.accuracy(modes["blind"]) < 0.5
    assert metrics.accuracy(modes["shuffled"]) < 0.5
    assert evaluation.spoken is None
    assert [row["kind"] for row in rows] == [*talk.KINDS, "all"]
    assert rows[0]["chance"] == pytest.approx(0.1)
    assert rows[-1]["chance"] == pytest.approx(np.mean([r["chance"] for r in rows[:-1]]))


def test_spoken_answers_count_from_the_users_first_frame(samples):
    few = samples[:3]
    rng = np.random.default_rng(0)
    right = [talk.answer(talk.WordedQuestion(s.kind, s.asked, s.prompt), s.truth, rng) for s in few]
    given = {}
    start = 4

    class Speaker(eval_model.LoadedModel):
        def encode_audio(self, clips):
            for clip in clips:
                assert not clip[: start * types.FRAME_SAMPLES].any() and np.abs(clip).max() > 0.05
                assert not clip[-60 * types.FRAME_SAMPLES :].any()
            return [np.full((8, len(c) // types.FRAME_SAMPLES), i) for i, c in enumerate(clips)]

        def converse(self, user_codes, images):
            given["images"] = images
            ids = np.zeros((len(user_codes), user_codes.shape[2]), np.int64)
            for row, i in zip(ids, user_codes[:, 0, 0], strict=True):
                row[start - 1] = 1  # a word too early
                row[start] = 2 + i
            return eval_model.Streams(ids, user_codes, user_codes)

        def decode_text(self, ids):
            return " ".join("hello" if i == 1 else right[i - 2] for i in ids if i)

    answers = runner.evaluate(_loaded(Speaker, {}), DIGITS, few, ["audio"]).answers["audio"]
    assert [a.said for a in answers] == right and all(a.correct for a in answers)
    np.testing.assert_array_equal(given["images"], [s.image() for s in few])
