"""What a benchmark is: its samples, how they are asked, and how an answer is scored.

One file in this folder is one benchmark, found by its name; one elsewhere is given by its path. To add one:

  1. write `mvjax/eval/benchmarks/NAME.py` with one class that derives from `Benchmark`;
  2. `mvjax eval RUN --benchmark NAME --data ROOT` asks, prints a table and writes RUN/eval/NAME.json.

Files whose name starts with an underscore are what benchmarks share.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np

from mvjax.data.records import record
from mvjax.eval import metrics

PromptMode = Literal["text", "audio", "blind", "shuffled"]
# Written questions; spoken ones; written without the image; written with an image that shows something else.
MODES: tuple[PromptMode, ...] = get_args(PromptMode)
Topic = Literal["image", "off-topic"]  # what an exchange is about, for the mean gate activations

LoadImage = Callable[[], np.ndarray]  # uint8 [height, width, 3]; the runner resizes it
LoadSpeech = Callable[[], np.ndarray]  # float32 [samples] at 24 kHz, without silence around it


class SpokenAnswer(NamedTuple):
    """An answer that the assistant is made to say."""

    samples: np.ndarray  # float32 [samples] at 24 kHz
    words: Sequence[record.Word]  # with their times in it


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A question before the one that is scored, and its answer."""

    topic: Topic
    question: str
    answer: str  # that a written conversation goes on from
    speech: LoadSpeech | None = None  # the question
    # the answer that a spoken conversation goes on from; None: the model's own, in the tail's time
    answer_speech: Callable[[], SpokenAnswer] | None = None


@dataclasses.dataclass(frozen=True)
class Sample:
    """One scored question. Whoever holds it holds no image and no sound: they are loaded when it is asked."""

    id: str  # the same in every mode and every run
    kind: str  # scores are reported for each kind
    prompt: str  # the question in writing
    truth: Any = None  # what `Benchmark.score` compares with
    image: LoadImage | None = None  # None: there is none, in any mode
    shows: Hashable = (
        None  # what the image shows; mode "shuffled" takes an image that shows something else
    )
    speech: LoadSpeech | None = None  # the question, for mode "audio"
    topic: Topic = "image"
    before: Sequence[Exchange] = ()
    # multiple choice: the answer is the one whose log-likelihood per token is highest; none: it is generated
    choices: tuple[str, ...] = ()


# The message without a root; takes the name of what lies below it.
NO_ROOT = (
    "--data ROOT (while a run trains: EvalConfig(..., data=ROOT) in config.evals): expected the folder that"
    " holds {}, got none"
)


@dataclasses.dataclass(frozen=True)
class PromptProtocol:
    """How questions are put; published with every result. Decoding is greedy."""

    lead_in: float = 5.0  # seconds of silence before the first spoken question; the model may greet
    tail: float = 20.0  # seconds of silence after each spoken question, for its answer
    # of the assistant in the lead-in: "free", it says what it likes, or "suppressed", its text is padding
    greeting: Literal["free", "suppressed"] = "free"
    # a spoken answer is the text from here on, so that a greeting does not count
    answer_from: Literal["question start", "question end"] = "question end"
    max_tokens: int = 40  # of a written answer
    template: str = "{prompt}"  # of a written question


class Benchmark(abc.ABC):
    """Base class of all benchmarks."""

    name: ClassVar[str]  # of the file that defines it
    metric: ClassVar[str] = "accuracy"  # its name in tables
    modes: ClassVar[tuple[PromptMode, ...]] = ("text", "blind", "shuffled")  # that it has
    overall: ClassVar[Literal["kinds", "samples"]] = "samples"  # what the last row is the mean of
    protocol: ClassVar[PromptProtocol] = PromptProtocol()

    def __init__(self, root: Path | None = None) -> None:
        """`root` is the folder that local copies of public data lie below (`--data`)."""
        self.root = root

    def data(self, name: str) -> Path:
        """Returns ROOT/NAME, a file or a folder.

        Raises:
          ValueError: without a root.
          FileNotFoundError: if it does not exist.
        """
        if self.root is None:
            raise ValueError(NO_ROOT.format(name))
        if not (path := self.root / name).exists():
            raise FileNotFoundError(f"{path}: expected data of benchmark {self.name}, got nothing")
        return path

    @abc.abstractmethod
    def samples(self, limit: int | None, seed: int) -> Sequence[Sample]:
        """Returns the samples, at most `limit` of them, drawn by the seed; None: all."""

    @abc.abstractmethod
    def score(self, sample: Any, said: str) -> float | None:
        """Scores the text that the model wrote, 0 to 1; None where that takes all answers (`summary`)."""

    def summary(self, answers: Sequence[metrics.ScoredAnswer]) -> metrics.Summary:
        """Scores the answers of one mode: means of their scores. A metric of the whole set overrides it."""
        return metrics.summary(answers, overall=self.overall)

    def chance(self, kind: str) -> float | None:
        """Returns the best score to expect of a guesser who does not see the image, if that is known."""
        del kind
        return None

    def columns(self, kind: str) -> dict[str, Any]:
        """Returns more columns of a kind's row."""
        del kind
        return {}


def drawn(count: int, limit: int | None, seed: int) -> list[int]:
    """Returns which of `count` samples are asked, ascending; those of a smaller limit are among them."""
    if limit is None or limit >= count:
        return list(range(count))
    return sorted(np.random.default_rng(seed).permutation(count)[:limit].tolist())


def shuffled(samples: Sequence[Sample]) -> list[int]:
    """For each sample the index of another one whose image shows something else.

    Raises:
      ValueError: if all images show the same.
    """
    rng = np.random.default_rng(0)
    shows = [sample.shows for sample in samples]
    if len(set(shows)) < 2:
        raise ValueError(
            f"shuffled: expected images that show different things, all {len(shows)} show "
            f"{shows[0] if shows else 'nothing'}; ask more questions"
        )
    chosen = []
    for own in shows:
        while shows[other := int(rng.integers(len(shows)))] == own:
            pass
        chosen.append(other)
    return chosen
