"""What a benchmark is, and how a model is asked its questions and scored.

To add one:

  1. write a class that meets `Benchmark` in a file `mvjax/eval/benchmarks/NAME.py`
     (`mvjax/digits/benchmark.py` is a complete example);
  2. give it a name in the table of `mvjax/commands/evaluate.py`;
  3. `mvjax eval RUN --benchmark NAME` prints its table and writes RUN/eval/NAME.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, get_args, runtime_checkable

import numpy as np

from mvjax.eval import metrics
from mvjax.eval import model as eval_model

PromptMode = Literal["text", "audio", "blind", "shuffled"]
# Written questions; spoken ones; written without the image; written with an image that shows something else.
MODES: tuple[PromptMode, ...] = get_args(PromptMode)


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about one image, in writing and as speech.

    `audio` (float32 [samples] at 24 kHz) has silence around the question, after it as long as an answer
    may take, and one length for all questions of a benchmark, as `image` has one size.
    """

    id: str
    kind: str  # accuracy is reported for each kind
    text: str
    image: np.ndarray  # uint8 [height, width, 3]
    truth: Any  # what the image shows, comparable with ==
    voice: str
    audio: np.ndarray
    start: int  # the frame in which the user begins; the answer is what is written from here on
    end: int  # the first frame after the question


Q = TypeVar("Q", bound=Question)


@runtime_checkable
class Benchmark(Protocol[Q]):
    """Questions, and how an answer is scored."""

    def questions(self, *, per_kind: int, seed: int) -> list[Q]:
        """Returns `per_kind` questions of each kind, drawn by the seed."""
        ...

    def is_correct(self, question: Q, answer: str) -> bool:
        """Scores the text that the model wrote."""
        ...

    def chance(self, kind: str) -> float:
        """Returns the best accuracy to expect of a guesser who does not see the image."""
        ...


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Answers by mode, in the order of the questions."""

    questions: Sequence[Question]
    answers: Mapping[str, list[metrics.ScoredAnswer]]
    spoken: eval_model.Streams | None  # of mode "audio", if that was asked
    table: list[dict[str, Any]]  # rows as of `metrics.table`, with a column "chance"


def evaluate(
    model: eval_model.LoadedModel,
    benchmark: Benchmark[Q],
    questions: Sequence[Q],
    modes: Sequence[PromptMode],
) -> Evaluation:
    """Asks every question in each mode, greedily, and scores the answers; raises as `shuffled`."""
    answers: dict[str, list[metrics.ScoredAnswer]] = {}
    spoken = None
    for mode in modes:
        if mode == "audio":
            spoken = _converse(model, questions)
            ids = zip(questions, spoken.text_ids, strict=True)
            texts = [model.decode_text(row[question.start :]) for question, row in ids]
        else:
            texts = _answer_text(model, questions, mode)
        answers[mode] = [
            metrics.ScoredAnswer(q.id, q.kind, q.text, text, benchmark.is_correct(q, text))
            for q, text in zip(questions, texts, strict=True)
        ]
    return Evaluation(questions, answers, spoken, _table(benchmark, answers))


def shuffled(questions: Sequence[Question]) -> list[int]:
    """For each question the index of another one whose image shows something else.

    Raises:
      ValueError: if all images show the same.
    """
    rng = np.random.default_rng(0)
    truths = [q.truth for q in questions]
    chosen = []
    for own in truths:
        others = [i for i, other in enumerate(truths) if other != own]
        if not others:
            raise ValueError(
                f"shuffled: expected images that show different things, all {len(truths)} show {own}; "
                "ask more questions"
            )
        chosen.append(others[int(rng.integers(len(others)))])
    return chosen


def _answer_text(
    model: eval_model.LoadedModel, questions: Sequence[Question], mode: PromptMode
) -> list[str]:
    order = shuffled(questions) if mode == "shuffled" else range(len(questions))
    images = np.stack([questions[i].image for i in order])
    return model.answer_text([q.text for q in questions], images, has_image=mode != "blind")


def _converse(model: eval_model.LoadedModel, questions: Sequence[Question]) -> eval_model.Streams:
    user_codes = np.stack(model.encode_audio([q.audio for q in questions]))
    return model.converse(user_codes, np.stack([q.image for q in questions]))


def _table(
    benchmark: Benchmark[Q], answers: Mapping[str, Sequence[metrics.ScoredAnswer]]
) -> list[dict[str, Any]]:
    *rows, total = metrics.table(answers)
    for row in rows:
        row["chance"] = benchmark.chance(row["kind"])
    return [*rows, total | {"chance": float(np.mean([row["chance"] for row in rows]))}]
