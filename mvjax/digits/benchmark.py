"""The digits benchmark: questions about held-out digits in held-out voices, greedy, scored on the text.

A mode is one way to ask: as text, as audio, as text without the image (blind), or as text with the
image of another question whose facts differ (shuffled).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mvjax import types
from mvjax.dialogues import speech
from mvjax.digits import talk, voices, world
from mvjax.eval import metrics
from mvjax.eval import model as eval_model

Mode = Literal["text", "audio", "blind", "shuffled"]
MODES: tuple[Mode, ...] = ("text", "audio", "blind", "shuffled")

_LEAD = 4  # frames of silence before the user speaks
_ANSWER = 64  # frames (5.1 s) for the answer; the longest takes 4 s


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about one test image.

    Attributes:
      id: names it.
      asked: kind, words, and the value that it names.
      scene: the image and its facts.
      voice: who speaks.
      start: the frame in which the user begins to speak.
      end: the first frame after the question.
      audio: float32 [samples], silence before and after the question included.
    """

    id: str
    asked: talk.Question
    scene: world.Scene
    voice: str
    start: int
    end: int
    audio: np.ndarray


@dataclasses.dataclass(frozen=True)
class Spoken:
    """Answers to spoken questions, with what was heard and said; entry i of each is question i."""

    answers: list[metrics.Answer]
    user_codes: np.ndarray  # int32 [B, Q, T]
    text_ids: np.ndarray  # int32 [B, T]
    audio_codes: np.ndarray  # int32 [B, Q, T]


def digits_questions(*, per_kind: int, seed: int) -> list[Question]:
    """Draws `per_kind` questions of each kind, one image each, voices in turn; all equally long."""
    kinds: list[talk.Kind] = [kind for _ in range(per_kind) for kind in talk.KINDS]
    drawn = []
    for i, scene in enumerate(world.scenes("test", len(kinds), seed)):
        rng = np.random.default_rng([seed, i])
        asked = talk.ask(kinds[i], scene.facts, rng)
        voice = voices.TEST_USERS[(i // len(talk.KINDS)) % len(voices.TEST_USERS)]
        begin = _LEAD * types.FRAME_SAMPLES + int(rng.integers(types.FRAME_SAMPLES))
        drawn.append((asked, scene, voice, begin, speech.speak(asked.text, voice).samples))
    longest = max(begin + len(samples) for *_, begin, samples in drawn)
    frames = -(-longest // types.FRAME_SAMPLES) + _ANSWER
    return [
        Question(
            id=f"{asked.kind}-{scene.id}",
            asked=asked,
            scene=scene,
            voice=voice.name,
            start=begin // types.FRAME_SAMPLES,
            end=-(-(begin + len(samples)) // types.FRAME_SAMPLES),
            audio=_placed(samples, begin, frames * types.FRAME_SAMPLES),
        )
        for asked, scene, voice, begin, samples in drawn
    ]


def evaluate_digits(
    model: eval_model.LoadedModel, questions: Sequence[Question], mode: Mode
) -> list[metrics.Answer]:
    """Asks every question in one mode and scores the answers."""
    if mode == "audio":
        return spoken(model, questions).answers
    chosen = shuffled(questions) if mode == "shuffled" else list(range(len(questions)))
    pictures = np.stack([questions[i].scene.image for i in chosen])
    texts = [q.asked.text for q in questions]
    said = model.answer_text(texts, pictures, has_image=mode != "blind")
    return [_scored(q, words) for q, words in zip(questions, said, strict=True)]


def spoken(model: eval_model.LoadedModel, questions: Sequence[Question]) -> Spoken:
    """Asks every question aloud; the answer is whatever is written once the user has begun."""
    user_codes = np.stack(model.hear([q.audio for q in questions]))
    pictures = np.stack([q.scene.image for q in questions])
    talked = model.converse(user_codes, pictures)
    answers = [
        _scored(q, model.words(ids[q.start :]))
        for q, ids in zip(questions, talked.text_ids, strict=True)
    ]
    return Spoken(answers, user_codes, talked.text_ids, talked.audio_codes)


def shuffled(questions: Sequence[Question], *, seed: int = 0) -> list[int]:
    """For each question the index of another one whose image shows something else.

    Raises:
      ValueError: if all images show the same.
    """
    rng = np.random.default_rng(seed)
    facts = [q.scene.facts for q in questions]
    chosen = []
    for own in facts:
        others = [i for i, other in enumerate(facts) if other != own]
        if not others:
            raise ValueError(
                f"shuffled: expected images with different facts, all {len(facts)} show {own}; "
                "ask more questions"
            )
        chosen.append(others[int(rng.integers(len(others)))])
    return chosen


def accuracy_table(modes: Mapping[str, Sequence[metrics.Answer]]) -> list[dict[str, Any]]:
    """Rows as `metrics.table`, with a column "chance": the best guess without seeing."""
    rows = metrics.table(modes)
    chances = [talk.chance(row["kind"]) for row in rows if row["kind"] != metrics.ALL]
    return [
        {**row, "chance": chance}
        for row, chance in zip(rows, [*chances, float(np.mean(chances))], strict=True)
    ]


def _scored(question: Question, said: str) -> metrics.Answer:
    asked = question.asked
    correct = talk.score(asked.kind, asked.asked, question.scene.facts, said)
    return metrics.Answer(question.id, asked.kind, asked.text, said, correct)


def _placed(samples: np.ndarray, begin: int, size: int) -> np.ndarray:
    audio = np.zeros(size, np.float32)
    audio[begin : begin + len(samples)] = samples
    return audio
