"""The stages of the quickstart: each takes what earlier ones returned and returns its own result."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from mvjax import run_folder, types
from mvjax.config import schema
from mvjax.data import images, mixture
from mvjax.digits import benchmark, recipe, records, talk, voice_check, voices
from mvjax.eval import answering, benchmarks, codec_check, journal, results, runner, switching
from mvjax.eval import model as eval_model
from mvjax.export import certificate, model_card, targets
from mvjax.export import folder as export_folder
from mvjax.report import html
from mvjax.train import fit, load

SEED = 1  # of test images, questions and utterances
TARGETS: tuple[targets.Target, ...] = ("torch", "mlx")
SCRIPT: tuple[tuple[switching.Topic, str], ...] = (
    ("image", "what digit is this"),
    ("small talk", "how are you today"),
    ("image", "what colour is it"),
)
_CERTIFIED_FRAMES = 120
_SHORT_DIALOGUES = 48
_HEAD, _TAIL = 3, 10  # frames of audio kept before the first word and from the last word on


@dataclasses.dataclass(frozen=True)
class QuickstartPlan:
    """What a quickstart does, and how much of it."""

    config: schema.Config
    out: Path  # the quickstart's folder
    per_kind: int  # test questions of each kind
    classifier_utterances: int  # that the word classifier is trained on
    tested_utterances: int  # held-out utterances, and spoken answers, that it is tested on
    short: bool  # whether the numbers are too few to judge
    continued: bool  # whether an earlier session began it

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.out / ("run-short" if self.short else "run")

    def exported(self, target: str) -> Path:
        """The folder of an export."""
        return self.out / "export" / target

    def certify(self, target: str) -> str:
        """The command that certifies an export anew."""
        return f"mvjax certify {self.exported(target)} --run {self.run}"


@dataclasses.dataclass(frozen=True)
class SpeechResults:
    """What the model sounds like."""

    examples: list[html.ExampleKind]
    trace: switching.GateTrace
    codec: codec_check.CodecAccuracy
    answer_accuracy: float  # of the word classifier on spoken answers, against the words written
    answer_words: int  # their number
    sentences: list[voice_check.Sentence]  # to hear side by side


@dataclasses.dataclass(frozen=True)
class QuickstartResults:
    """The results of all stages."""

    plan: QuickstartPlan
    model: eval_model.LoadedModel
    evaluation: runner.Evaluation
    certificates: dict[str, dict[str, Any]]
    speech: SpeechResults


def plan(out: Path, *, short: bool) -> QuickstartPlan:
    """Returns the full plan, or a short one that exercises the same code."""
    config = recipe.digits()
    data = dataclasses.replace(config.data, root=str(out / ("data-short" if short else "data")))
    config = dataclasses.replace(config, data=data)
    counts = (4, 120, 12) if short else (48, 240, 72)
    if short:
        train = dataclasses.replace(config.train, steps=20, log_every=5, checkpoint_every=10)
        optim = dataclasses.replace(config.optim, warmup_steps=5)
        config = dataclasses.replace(config, train=train, optim=optim)
    return QuickstartPlan(
        config, out, *counts, short=short, continued=Path(config.data.root).exists()
    )


def data(plan: QuickstartPlan) -> None:
    """Makes the training records, unless they are there."""
    root = Path(plan.config.data.root)
    if plan.short and not root.exists():
        records.prepare(root, dialogues=_SHORT_DIALOGUES)
    mixture.ensure_records(plan.config.data)


def train(plan: QuickstartPlan) -> eval_model.LoadedModel:
    """Trains the adapters, or resumes, and reads the result back from its checkpoint."""
    if not fit.fit(plan.config, plan.run).finished:
        raise KeyboardInterrupt  # what stops `fit` early is a signal
    trained = load.trained(plan.run)
    return eval_model.load(trained.config, trained.params)


def evaluate(model: eval_model.LoadedModel, plan: QuickstartPlan) -> runner.Evaluation:
    """Asks held-out questions in every mode; the results go where `mvjax eval` writes them."""
    digits = benchmark.DigitsBenchmark()
    limit = plan.per_kind * len(talk.KINDS)
    asked = results.Asked(
        benchmark=digits,
        config=plan.config,
        step=plan.config.train.steps,
        checkpoint=load.identity(plan.run),
        protocol=digits.protocol,
        seed=SEED,
        limit=limit,
        batch_size=runner.BATCH_SIZE,
    )
    samples = digits.samples(limit, SEED)
    folder = plan.run / run_folder.EVAL
    path = folder / f"{digits.name}.samples.jsonl"
    with journal.Journal(path, asked.identity(), fresh=True) as log:  # spoken answers are needed
        evaluation = runner.evaluate(
            model, digits, samples, digits.modes, log=log, keep_spoken=len(samples)
        )
    results.write(folder / f"{digits.name}.json", evaluation, asked)
    return evaluation


def export(
    model: eval_model.LoadedModel, evaluation: runner.Evaluation, plan: QuickstartPlan
) -> dict[str, dict[str, Any]]:
    """Exports for each runtime; certificates compare those installed, on the reloaded files, with JAX."""
    codes = [spoken.streams.user_codes for spoken in _spoken(evaluation)[:2]]
    user_codes = np.concatenate(codes, axis=1)[:, :_CERTIFIED_FRAMES]
    pixels = images.normalize(_image(evaluation.samples[0]))[None]
    card = model_card.read_results(plan.run, step=plan.config.train.steps)
    certificates = {}
    for target in TARGETS:
        folder = plan.exported(target)
        shutil.rmtree(folder, ignore_errors=True)
        export_folder.export(model.params, model.config, target, folder, results=card)
        certificates[target] = certificate.certify(
            model.params, model.config, folder, target, pixels=pixels, user_codes=user_codes
        )
    return certificates


def write_question(evaluation: runner.Evaluation, plan: QuickstartPlan) -> None:
    """Writes a test image and a spoken question about its digit, for `mvjax talk`."""
    asked = next(sample for sample in evaluation.samples if sample.kind == "digit")
    image = plan.out / run_folder.QUESTION_IMAGE
    image.parent.mkdir(exist_ok=True)
    image.write_bytes(images.encode_png(_image(asked)))
    assert asked.speech is not None
    soundfile.write(plan.out / run_folder.QUESTION_AUDIO, asked.speech(), types.SAMPLE_RATE)


def speak(
    model: eval_model.LoadedModel, evaluation: runner.Evaluation, plan: QuickstartPlan
) -> SpeechResults:
    """Decodes spoken answers, holds a conversation, and measures how intelligible the speech is."""
    image = _image(evaluation.samples[0])
    trace = switching.converse(model, SCRIPT, image, voices.TEST_USERS[0])
    training, held_out = voice_check.utterances(
        plan.classifier_utterances, plan.tested_utterances, SEED
    )
    classifier = codec_check.WordClassifier(
        [word for utterance in training for word in codec_check.cut(*utterance)]
    )
    coded = model.decode_audio(model.encode_audio([samples for samples, _ in held_out]))
    answers = _answer_words(model, _spoken(evaluation)[: plan.tested_utterances])
    return SpeechResults(
        examples=_examples(model, evaluation),
        trace=trace,
        codec=codec_check.check(classifier, held_out, coded),
        answer_accuracy=classifier.accuracy(answers),
        answer_words=len(answers),
        sentences=voice_check.sentences(model, _spoken(evaluation)[: len(talk.KINDS)]),
    )


def summary(results: QuickstartResults) -> dict[str, Any]:
    """The measured numbers as JSON values; the accuracies are means over the question kinds.

    Of a certificate that was not run, the numbers are None.
    """
    plan, table, speech = results.plan, results.evaluation.table, results.speech
    trace = speech.trace
    kept = ("max_abs_logit_error", "greedy_frames_equal", "verdict")
    return {
        "accuracy": {mode: table[-1][mode] for mode in benchmarks.MODES},
        "certificates": {
            name: {key: c.get(key) for key in kept} for name, c in results.certificates.items()
        },
        "accuracy_interval": results.evaluation.intervals,
        "accuracy_by_kind": table,
        "codec_words": {
            **codec_check.summary(speech.codec),
            "spoken_answers": speech.answer_accuracy,
            "spoken_answer_words": speech.answer_words,
        },
        "gate_activation": {
            "image": trace.mean_activation("image"),
            "small talk": trace.mean_activation("small talk"),
            "image_peak": trace.mean_peak("image"),
            "small_talk_peak": trace.mean_peak("small talk"),
        },
        "steps": plan.config.train.steps,
        "short": plan.short,
        "continued": plan.continued,
    }


def _image(sample: benchmarks.Sample) -> np.ndarray:
    assert sample.image is not None
    return sample.image()


def _spoken(evaluation: runner.Evaluation) -> list[answering.SpokenConversation]:
    return [evaluation.spoken[sample.id] for sample in evaluation.samples]


def _examples(
    model: eval_model.LoadedModel, evaluation: runner.Evaluation
) -> list[html.ExampleKind]:
    """Of each kind of question the first right answer and the first wrong one, voices in turn."""
    answers, kinds = evaluation.answers["audio"], len(talk.KINDS)
    chosen: dict[str, dict[bool, int]] = {kind: {} for kind in talk.KINDS}
    # kind k begins with voice k: questions are asked kind by kind, with the next voice in each round
    for i in sorted(
        range(len(answers)), key=lambda i: (i // kinds - i % kinds) % len(voices.TEST_USERS)
    ):
        chosen[answers[i].kind].setdefault(answers[i].correct, i)
    indices = [i for pair in chosen.values() for _, i in sorted(pair.items(), reverse=True)]
    shown = dict(zip(indices, _shown(model, evaluation, indices), strict=True))
    return [
        html.ExampleKind(
            name=kind,
            right=sum(a.correct for a in answers if a.kind == kind),
            n=sum(a.kind == kind for a in answers),
            examples=[shown[pair[right]] for right in (True, False) if right in pair],
        )
        for kind, pair in chosen.items()
    ]


def _shown(
    model: eval_model.LoadedModel, evaluation: runner.Evaluation, chosen: Sequence[int]
) -> list[html.ReportExample]:
    spoken = _spoken(evaluation)
    user_audio = model.decode_audio([spoken[i].streams.user_codes for i in chosen])
    model_audio = model.decode_audio([spoken[i].streams.audio_codes for i in chosen])
    examples = []
    for i, asked, answered in zip(chosen, user_audio, model_audio, strict=True):
        sample, answer = evaluation.samples[i], evaluation.answers["audio"][i]
        assert isinstance(sample, benchmark.DigitsSample)
        facts, (streams, start, end) = sample.truth, spoken[i]
        frames = [f for _, f in model.timed_words(streams.text_ids) if f >= start]
        begin, last = (frames[0], frames[-1]) if frames else (end, end)
        examples.append(
            html.ReportExample(
                image=_image(sample),
                scene=f"a {facts.colour} {talk.truth(facts, 'digit')}, {facts.place}",
                voice=sample.voice,
                question=sample.prompt,
                question_audio=_frames(asked, 0, end + _TAIL),
                said=answer.said,
                answer_audio=_frames(answered, begin - _HEAD, last + _TAIL),
                correct=answer.correct,
            )
        )
    return examples


def _frames(samples: np.ndarray, first: int, last: int) -> np.ndarray:
    return samples[max(first, 0) * types.FRAME_SAMPLES : last * types.FRAME_SAMPLES]


def _answer_words(
    model: eval_model.LoadedModel, spoken: Sequence[answering.SpokenConversation]
) -> list[codec_check.WordClip]:
    """Words of spoken answers, labeled with what the model wrote meanwhile."""
    words = []
    clips = model.decode_audio([conversation.streams.audio_codes for conversation in spoken])
    for ids, samples in zip((c.streams.text_ids for c in spoken), clips, strict=True):
        timed = [(w, f * types.FRAME_SECONDS) for w, f in model.timed_words(ids)]
        words += codec_check.cut(samples, timed)
    return words
