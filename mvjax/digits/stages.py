"""The stages of the quickstart: each takes what the ones before made, and returns what it makes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from mvjax import run_folder, tree, types
from mvjax.config import schema
from mvjax.data import images, mixture
from mvjax.dialogues import speech
from mvjax.digits import benchmark, recipe, records, talk, voices
from mvjax.eval import codec_check, metrics, switching
from mvjax.eval import model as eval_model
from mvjax.export import certificate, targets
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
_HEAD, _TAIL = 3, 10  # frames of sound kept before the first word and from the last word on


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a quickstart does, and how much of it.

    Attributes:
      config: of the training run.
      out: the quickstart's folder.
      per_kind: test questions of each kind.
      taught: utterances that the word classifier learns from.
      heard: held-out utterances and spoken answers that it listens to.
      short: whether the numbers are too few to judge.
    """

    config: schema.Config
    out: Path
    per_kind: int
    taught: int
    heard: int
    short: bool

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.out / ("run-short" if self.short else "run")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Questions, every mode's answers, and the accuracy table."""

    questions: list[benchmark.Question]
    answers: dict[str, list[metrics.Answer]]
    spoken: benchmark.Spoken
    table: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class SpokenHeard:
    """How many words of the model's spoken answers the classifier hears as the words it wrote."""

    share: float
    words: int


@dataclasses.dataclass(frozen=True)
class Speech:
    """What the model sounds like."""

    examples: list[html.ReportExample]
    trace: switching.Trace
    codec: codec_check.Result
    answers: SpokenHeard


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that the report tells."""

    plan: Plan
    model: eval_model.LoadedModel
    evaluation: Evaluation
    certificates: dict[str, dict[str, Any]]
    speech: Speech


def plan(out: Path, *, short: bool) -> Plan:
    """Returns the full plan, or a short one that exercises the same code."""
    config = recipe.digits()
    data = dataclasses.replace(config.data, root=str(out / ("data-short" if short else "data")))
    config = dataclasses.replace(config, data=data)
    if not short:
        return Plan(config, out, per_kind=48, taught=240, heard=72, short=False)
    train = dataclasses.replace(config.train, steps=20, log_every=5, checkpoint_every=10)
    optim = dataclasses.replace(config.optim, warmup_steps=5)
    config = dataclasses.replace(config, train=train, optim=optim)
    return Plan(config, out, per_kind=4, taught=120, heard=12, short=True)


def data(plan: Plan) -> None:
    """Makes the training records, unless they are there."""
    root = Path(plan.config.data.root)
    if plan.short and not root.exists():
        records.prepare(root, dialogues=_SHORT_DIALOGUES)
    mixture.ensure_records(plan.config.data)


def train(plan: Plan) -> eval_model.LoadedModel:
    """Trains (or goes on training) the adapters and reads the result back from its checkpoint."""
    if not fit.fit(plan.config, plan.run).finished:
        raise KeyboardInterrupt  # what stops `fit` early is a signal
    trained = load.trained(plan.run)
    return eval_model.load(trained.config, trained.params)


def evaluate(model: eval_model.LoadedModel, plan: Plan) -> Evaluation:
    """Asks held-out questions in every mode; every answer goes to RUN/eval/answers.json."""
    questions = benchmark.digits_questions(per_kind=plan.per_kind, seed=SEED)
    spoken = benchmark.spoken(model, questions)
    answers = {
        mode: spoken.answers
        if mode == "audio"
        else benchmark.evaluate_digits(model, questions, mode)
        for mode in benchmark.MODES
    }
    path = plan.run / run_folder.ANSWERS
    path.parent.mkdir(exist_ok=True)
    listed = {mode: [dataclasses.asdict(a) for a in given] for mode, given in answers.items()}
    path.write_text(json.dumps(listed, indent=1) + "\n")
    return Evaluation(questions, answers, spoken, benchmark.accuracy_table(answers))


def export(
    model: eval_model.LoadedModel, evaluation: Evaluation, plan: Plan
) -> dict[str, dict[str, Any]]:
    """Exports for each runtime, and certifies what the runtime makes of the reloaded files."""
    user_codes = np.concatenate(evaluation.spoken.user_codes[:2], axis=1)[:, :_CERTIFIED_FRAMES]
    picture = evaluation.questions[0].scene.image
    certificates = {}
    for target in TARGETS:
        folder = plan.out / "export" / target
        shutil.rmtree(folder, ignore_errors=True)
        export_folder.export(model.params, model.config, target, folder)
        certificates[target] = certificate.certify(
            model.params,
            model.config,
            folder,
            target,
            pixels=images.normalize(picture)[None],
            user_codes=user_codes,
        )
    return certificates


def speak(model: eval_model.LoadedModel, evaluation: Evaluation, plan: Plan) -> Speech:
    """Decodes spoken answers, holds a conversation, and measures how well words are heard."""
    scene = evaluation.questions[0].scene
    trace = switching.converse(model, SCRIPT, scene.image, voices.TEST_USERS[0])
    taught, held_out = _utterances(plan)
    listener = codec_check.Listener([word for u in taught for word in codec_check.cut(*u)])
    coded = model.say(model.hear([samples for samples, _ in held_out]))
    return Speech(
        examples=_examples(model, evaluation),
        trace=trace,
        codec=codec_check.check(listener, held_out, coded),
        answers=_answers(model, evaluation, listener, plan),
    )


def summary(results: Results) -> dict[str, Any]:
    """The measured numbers as JSON values; the accuracies are means over the question kinds."""
    plan, table, speech = results.plan, results.evaluation.table, results.speech
    kept = ("max_abs_logit_error", "greedy_frames_equal", "verdict")
    return {
        "accuracy": {mode: table[-1][mode] for mode in benchmark.MODES},
        "certificates": {
            name: {key: c[key] for key in kept} for name, c in results.certificates.items()
        },
        "accuracy_by_kind": table,
        "codec_words": {
            **codec_check.summary(speech.codec),
            "spoken_answers": speech.answers.share,
            "spoken_answer_words": speech.answers.words,
        },
        "gate_opening": {
            "image": switching.mean_opening(speech.trace, "image"),
            "small_talk": switching.mean_opening(speech.trace, "small talk"),
            "image_peak": switching.mean_peak(speech.trace, "image"),
            "small_talk_peak": switching.mean_peak(speech.trace, "small talk"),
        },
        "steps": plan.config.train.steps,
        "short": plan.short,
    }


def table_text(evaluation: Evaluation) -> str:
    """The accuracy table for the terminal."""
    return metrics.text_table(evaluation.table)


def parameter_counts(model: eval_model.LoadedModel) -> tuple[int, int]:
    """(trained, frozen) parameters."""
    parts = tree.partition(model.params, model.config.train.trained)
    trained, frozen = (sum(leaf.size for leaf in tree.flatten(p).values()) for p in parts)
    return trained, frozen


def _examples(model: eval_model.LoadedModel, evaluation: Evaluation) -> list[html.ReportExample]:
    """One question of each kind, voices in turn: the first ones asked, right or wrong."""
    kinds = len(talk.KINDS)
    chosen = [k + kinds * (k % len(voices.TEST_USERS)) for k in range(kinds)]
    spoken = evaluation.spoken
    questions = model.say([spoken.user_codes[i] for i in chosen])
    answers = model.say([spoken.audio_codes[i] for i in chosen])
    examples = []
    for i, heard, said in zip(chosen, questions, answers, strict=True):
        question, answer = evaluation.questions[i], spoken.answers[i]
        facts = question.scene.facts
        frames = [f for _, f in model.timed_words(spoken.text_ids[i]) if f >= question.start]
        begin, end = (frames[0], frames[-1]) if frames else (question.end, question.end)
        examples.append(
            html.ReportExample(
                kind=answer.kind,
                image=question.scene.image,
                scene=f"a {facts.colour} {talk.truth(facts, 'digit')}, {facts.place}",
                voice=question.voice,
                question=question.asked.text,
                question_audio=_frames(heard, 0, question.end + _TAIL),
                said=answer.said,
                answer_audio=_frames(said, begin - _HEAD, end + _TAIL),
                correct=answer.correct,
            )
        )
    return examples


def _frames(samples: np.ndarray, first: int, last: int) -> np.ndarray:
    return samples[max(first, 0) * types.FRAME_SAMPLES : last * types.FRAME_SAMPLES]


def _utterances(plan: Plan) -> tuple[list[codec_check.Utterance], list[codec_check.Utterance]]:
    """The assistant's sentences as synthesized: to teach with, and others to test with."""
    rng = np.random.default_rng(SEED)
    texts: dict[str, None] = {}
    while len(texts) < plan.taught + plan.heard:
        dialogue = talk.visual_dialogue(talk.random_facts(rng), rng)
        texts |= {turn.text: None for turn in dialogue.turns if turn.speaker == "assistant"}
    spoken = []
    for text in list(texts)[: plan.taught + plan.heard]:
        said = speech.speak(text, voices.ASSISTANT)
        spoken.append((said.samples, [(word.text, word.start) for word in said.words]))
    return spoken[: plan.taught], spoken[plan.taught :]


def _answers(
    model: eval_model.LoadedModel,
    evaluation: Evaluation,
    listener: codec_check.Listener,
    plan: Plan,
) -> SpokenHeard:
    """Listens to the model's own answers; what it wrote is what it should have said."""
    spoken = evaluation.spoken
    words = []
    clips = model.say(list(spoken.audio_codes[: plan.heard]))
    for ids, samples in zip(spoken.text_ids[: plan.heard], clips, strict=True):
        timed = [(w, f * types.FRAME_SECONDS) for w, f in model.timed_words(ids)]
        words += codec_check.cut(samples, timed)
    return SpokenHeard(listener.accuracy(words), len(words))
