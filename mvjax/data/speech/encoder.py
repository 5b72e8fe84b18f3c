"""Encodes dialogues in one process, in batches; skips those whose codes are in the store."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from mvjax import files, types
from mvjax.codec import interface
from mvjax.config import schema
from mvjax.data.speech import augment, code_store, spoken
from mvjax.weights import mimi

V = TypeVar("V")


@dataclasses.dataclass(frozen=True)
class EncodeSettings:
    """What codes depend on, and how they are made."""

    codec: str  # location of the codec's weights
    config: schema.MimiConfig
    codebooks: int  # per side that are kept
    store: Path  # folder of the code store
    augment: augment.Augment | None = None  # of the user's stream; None: as recorded
    max_seconds: float = spoken.MAX_SECONDS  # a longer dialogue is skipped
    batch_seconds: float = 200.0  # of audio in a batch; memory is proportional to it


@dataclasses.dataclass(frozen=True)
class EncodeTask:
    """One dialogue to encode; its copies differ in their augmentation."""

    dialogue: spoken.Spoken
    copy: int = 0

    @property
    def id(self) -> str:
        """The record's id."""
        return self.dialogue.id if self.copy == 0 else f"{self.dialogue.id}#{self.copy}"


@dataclasses.dataclass(frozen=True)
class EncodeResult:
    """The outcome of a task."""

    key: str | None  # of its codes in the store; None if it could not be encoded
    seconds: float = 0.0  # of audio
    fresh: bool = False  # encoded in this run
    problem: str = ""  # why it could not be encoded


class Encoder:
    """Encodes chunks of tasks; one per process."""

    def __init__(self, settings: EncodeSettings) -> None:
        self._settings = settings
        self._store = code_store.CodeStore(settings.store)
        path = files.resolve(settings.codec)
        change = repr(settings.augment) if settings.augment else ""  # equal if audio will be equal
        self._shaped_by = (files.file_hash(path), str(settings.codebooks), change)
        self._augment = augment.Augmenter(settings.augment) if settings.augment else None
        self._codec: Callable[[], interface.Codec] = functools.cache(
            lambda: mimi.open_codec(path, settings.config)
        )

    def __call__(self, tasks: Sequence[EncodeTask]) -> list[EncodeResult]:
        """Encodes tasks and returns their results; a failed task does not stop the others."""
        done: dict[int, EncodeResult] = {}
        todo: list[tuple[int, str, np.ndarray]] = []
        for i, task in enumerate(tasks):
            which = (task.dialogue.id, str(task.copy)) if self._augment else ()
            try:
                key = code_store.key(task.dialogue.audio, *self._shaped_by, *which)
                if stored := self._store.load(key):
                    done[i] = EncodeResult(key, stored.seconds)
                else:
                    audio = task.dialogue.samples(max_seconds=self._settings.max_seconds)
                    if self._augment:
                        audio = self._augment(audio, id=task.dialogue.id, copy=task.copy)
                    todo.append((i, key, audio))
            except (ValueError, OSError) as error:
                done[i] = EncodeResult(None, problem=str(error))
        for i, key, seconds in self._encode(todo):
            done[i] = EncodeResult(key, seconds, fresh=True)
        return [done[i] for i in range(len(tasks))]

    def _encode(
        self, todo: Sequence[tuple[int, str, np.ndarray]]
    ) -> Iterator[tuple[int, str, float]]:
        """Encodes and stores in batches; both sides of a dialogue are rows of the same batch."""
        longest_first = sorted(todo, key=lambda entry: -entry[2].shape[1])
        for frames, group in itertools.groupby(longest_first, key=lambda e: bucket(e[2].shape[1])):
            size = max(int(self._settings.batch_seconds / types.FRAME_SECONDS) // (2 * frames), 1)
            for batch in batched(group, size):
                # Mimi is causal, so padding at the end changes no code before it. Batches are padded to
                # their full size: each bucket compiles once.
                rows = np.zeros((size, 2, frames * types.FRAME_SAMPLES), np.float32)
                for row, (_, _, audio) in zip(rows, batch, strict=False):
                    row[:, : audio.shape[1]] = audio
                codes = self._codec().encode(rows.reshape(2 * size, -1))
                codes = codes[:, : self._settings.codebooks].reshape(size, -1, frames)
                for (i, key, audio), own in zip(batch, codes.astype(np.uint16), strict=False):
                    seconds = audio.shape[1] / types.SAMPLE_RATE
                    length = math.ceil(audio.shape[1] / types.FRAME_SAMPLES)
                    self._store.save(key, own[:, :length], seconds)
                    yield i, key, seconds


def bucket(samples: int) -> int:
    """Number of frames a signal is padded to: few different numbers, at most a quarter more than it has."""
    frames = max(math.ceil(samples / types.FRAME_SAMPLES), 1)
    step = max(2 ** (frames.bit_length() - 3), 1)
    return math.ceil(frames / step) * step


def batched(entries: Iterable[V], size: int) -> Iterator[tuple[V, ...]]:
    """itertools.batched of Python 3.12."""
    entries = iter(entries)
    while batch := tuple(itertools.islice(entries, size)):
        yield batch
