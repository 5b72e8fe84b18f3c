"""A benchmark asked while a run trains: what it writes, and that it changes nothing."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small_speaker
import soundfile
import toy

from mvjax import files, types
from mvjax.commands import training
from mvjax.config import evaluating, schema
from mvjax.digits import recipe
from mvjax.eval import answering, benchmarks, during_training, metrics, runner
from mvjax.eval import model as eval_model
from mvjax.train import callbacks, fit
from mvjax.weights import mimi

PARTS = ("step", "loss", "text_speech", "text_speechless", "audio_speech", "grad_norm")
FRAME = small_speaker.FRAME
SETTINGS = evaluating.EvalConfig("noise", every=20, limit=3, modes=("text", "audio"), examples=2)


class Decoder(eval_model.LoadedModel):
    """Decodes codes to as many frames of a constant."""

    def decode_audio(self, codes):
        return [np.full(c.shape[1] * FRAME, 0.5 + 0.1 * c[0, 0], np.float32) for c in codes]


@pytest.fixture
def loaded(monkeypatch):
    codec = mimi.open_codec(files.resolve(recipe.digits().frozen.codec), recipe.digits().codec)
    model = Decoder(small_speaker.CONFIG, {}, codec, None)
    monkeypatch.setattr(eval_model, "load", lambda *arguments: model)


def _evaluated(samples: list[benchmarks.Sample], modes: tuple[str, ...]) -> runner.Evaluation:
    """What a model might have said."""
    kinds = [
        {"kind": kind, "n": 2, **dict.fromkeys(modes, share)}
        for kind, share in (("short", 0.5), ("long", 0.1))
    ]
    answers = {
        mode: [metrics.ScoredAnswer(s.id, s.kind, s.prompt, "a seven", 0.2) for s in samples]
        for mode in modes
    }
    streams = eval_model.Streams(np.zeros(64), np.ones((3, 64)), np.zeros((3, 64)))
    spoken = {s.id: answering.SpokenConversation(streams, 2, 9) for s in samples[:2]}
    table = [*kinds, {"kind": metrics.ALL, "n": 4, **dict.fromkeys(modes, 0.3)}]
    intervals = dict.fromkeys(modes, (0.2, 0.4))
    return runner.Evaluation(samples, answers, table, intervals, spoken=spoken)


def test_the_current_adapters_answer_and_what_they_say_is_written(monkeypatch, tmp_path, loaded):
    asked = []

    def evaluate(model, benchmark, samples, modes, *, keep_spoken):
        asked.append((model.params["xa"]["kernel"], keep_spoken))
        return _evaluated(samples, modes)

    monkeypatch.setattr(runner, "evaluate", evaluate)
    noise = small_speaker.Noise()
    called = during_training.callback(small_speaker.CONFIG, tmp_path, noise, SETTINGS)
    assert called.every == 20 and called.name == "noise benchmark"
    frozen = {"backbone": {"kernel": np.float32(1)}}
    state = callbacks.ModelState({"xa": {"kernel": np.float32(2)}}, None, frozen)
    found = called.run(20, state)
    averaged = called.run(40, state._replace(ema={"xa": {"kernel": np.float32(3)}}))
    assert asked == [(2, 2), (3, 2)] and averaged.metrics == found.metrics
    assert found.metrics["noise_accuracy_text"] == 0.3
    assert found.metrics["noise_accuracy_audio/short"] == 0.5

    folder = tmp_path / "eval" / "training"
    result = json.loads((folder / "noise@20.json").read_text())
    assert (result["step"], result["limit"], result["table"][-1]["audio"]) == (20, 3, 0.3)
    shown = (folder / "noise@20" / "answers.md").read_text()
    assert shown.startswith("## text\n") and shown.count("\n- ") == 4
    sounds = sorted((folder / "noise@20").glob("*.wav"))
    assert [path.stem for path in sounds] == [s.id for s in noise.samples(3, 1)[:2]]
    assert found.tables["noise/scores"][-1]["kind"] == "all"
    rows = averaged.tables["noise/answers"]
    assert [(row["prompts"], row["said"]) for row in rows] == [
        (mode, "a seven") for mode in ("text", "text", "audio", "audio")
    ]
    assert [row["sound"] and row["sound"].path.parent.name for row in rows] == [
        None, None, "noise@40", "noise@40"
    ]  # fmt: skip
    clip, rate = soundfile.read(sounds[0])
    assert rate == 24_000 and clip.shape == (64 * FRAME, 2)
    np.testing.assert_allclose(clip[0], [0.5, 0.6], atol=1e-3)


def test_a_mode_that_the_benchmark_lacks_is_refused_before_training(tmp_path, loaded):
    class Written(small_speaker.Noise):
        modes = ("text",)

    with pytest.raises(ValueError, match="expected modes among text, got audio"):
        during_training.callback(small_speaker.CONFIG, tmp_path, Written(), SETTINGS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digits", "--evaluate digits: expected NAME:N"),
        ("digits:0", "--evaluate digits:0: expected NAME:N"),
        ("digit:100", "--evaluate: unknown 'digit'; did you mean 'digits'?"),
    ],
)
def test_the_option_of_the_command(text, message):
    with pytest.raises(ValueError) as error:
        training._evaluation(text)
    assert message in str(error.value)


def test_the_option_is_an_entry_of_the_config():
    assert training._evaluation("digits:100") == (evaluating.EvalConfig("digits", every=100),)
    with pytest.raises(ValueError, match="evals: expected every and limit of at least 1"):
        evaluating.EvalConfig("digits", every=0)


class RandomBatches:
    """Batches of the digits' sizes, each a pure function of its step."""

    def __getitem__(self, step: int) -> types.Batch:
        rng, model = np.random.default_rng(step), recipe.digits().model
        spoken = toy.part(rng, 8, 64, spoken=True, model=model)
        written = toy.part(rng, 8, 16, spoken=False, model=model)
        for part in (spoken, written):
            part.codes[:, 0] %= model.text_vocab
        return types.Batch(spoken, written)

    def ids(self, step: int) -> dict[str, list[str]]:
        return {"speech": [f"{step}"] * 8, "speechless": [f"{step}"] * 8}


@pytest.mark.slow
def test_evaluations_change_nothing_about_a_run(tmp_path):
    """Four steps of the digits, asked after two of them, in writing and aloud: the same losses to the bit."""
    run = recipe.digits()
    sizes = {"speech_rows": 8, "speechless_rows": 8, "speech_frames": 64, "speechless_tokens": 16}
    run = dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, **sizes),
        optim=dataclasses.replace(run.optim, warmup_steps=1),
        train=dataclasses.replace(run.train, steps=4, log_every=1),
    )
    settings = evaluating.EvalConfig("digits", every=2, limit=2, modes=("text", "audio"))

    def losses(name: str, evals: tuple[evaluating.EvalConfig, ...]) -> list[dict]:
        asked: schema.Config = dataclasses.replace(run, evals=evals)
        made = training._callbacks(asked, tmp_path / name)
        with jax.numpy_dtype_promotion("standard"):  # optax promotes its step count
            fit.fit(asked, tmp_path / name, data=RandomBatches(), callbacks=made, quiet=True)
        return [{part: line[part] for part in PARTS} for line in logged(name)]

    def logged(name: str) -> list[dict]:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return list(map(json.loads, lines))

    assert losses("asked", (settings,)) == losses("alone", ())
    assert (tmp_path / "asked" / "eval" / "training" / "digits@4.json").exists()
    asked = [line["step"] for line in logged("asked") if "digits_accuracy_audio" in line]
    assert asked == [2, 4]
