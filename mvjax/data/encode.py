"""Spoken dialogues -> records: Mimi over many files, in batches, by several processes, resumable.

    for each chunk of dialogues, in any process: hash the audio; what the store has is done; the rest is read,
    augmented, sorted by length, encoded in batches, and kept in the store
    here, in the order of the dialogues: codes from the store -> records

Codes are found by what they were made from (`code_store`), so a run that was killed goes on, and a dataset
that grew costs only what is new.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import TypeVar

import numpy as np

from mvjax import config as config_lib
from mvjax import types
from mvjax.codec import interface
from mvjax.data import augment, code_store, records, spoken
from mvjax.data.ingest import items
from mvjax.weights import locate, mimi

CHUNK = 16  # dialogues that a process takes at a time
STORE = ".codes"  # folder below the root of the records

V = TypeVar("V")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What shapes the codes.

    Attributes:
      codec: location of the codec's weights.
      config: their sizes.
      codebooks: kept of each side.
      store: folder of finished codes.
      augment: of the user's stream; None: as recorded.
      max_seconds: a longer dialogue is left out.
      batch_seconds: audio in one batch; memory grows with it.
    """

    codec: str
    config: config_lib.MimiConfig
    codebooks: int
    store: Path
    augment: augment.Augment | None = None
    max_seconds: float = spoken.MAX_SECONDS
    batch_seconds: float = 200.0


@dataclasses.dataclass(frozen=True)
class Task:
    """One dialogue to encode; copies differ in what is drawn for the user's stream."""

    dialogue: spoken.Spoken
    copy: int = 0

    @property
    def id(self) -> str:
        """The record's."""
        return self.dialogue.id if self.copy == 0 else f"{self.dialogue.id}#{self.copy}"


@dataclasses.dataclass(frozen=True)
class Done:
    """Where the codes of a task are.

    Attributes:
      key: in the store; None if it could not be encoded.
      seconds: of audio.
      fresh: encoded just now, not found.
      problem: why not.
    """

    key: str | None
    seconds: float = 0.0
    fresh: bool = False
    problem: str = ""


@dataclasses.dataclass
class Tally:
    """How far an encoding is; `seconds` and `fresh_seconds` are of audio, `elapsed` of the clock."""

    records: int = 0
    skipped: int = 0
    seconds: float = 0.0
    fresh_seconds: float = 0.0
    elapsed: float = 0.0

    def hours_per_minute(self) -> float:
        """Hours of audio encoded a minute; what was found in the store does not count."""
        return self.fresh_seconds / 3600 / max(self.elapsed / 60, 1e-9)


class Encoder:
    """Encodes chunks of tasks; one for each process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = code_store.Store(settings.store)
        path = locate.resolve(settings.codec)
        change = settings.augment.describe() if settings.augment else ""
        self._shaped_by = (locate.file_hash(path), str(settings.codebooks), change)
        self._augment = augment.Augmenter(settings.augment) if settings.augment else None
        self._codec: Callable[[], interface.Codec] = functools.cache(
            lambda: interface.Flax(mimi.load_mimi(path, settings.config), settings.config)
        )

    def __call__(self, tasks: Sequence[Task]) -> list[Done]:
        """Returns what became of each task; none of them stops the others."""
        done: list[Done | None] = [None] * len(tasks)
        todo: list[tuple[int, str, np.ndarray]] = []
        for i, task in enumerate(tasks):
            try:
                key = self._key(task)
                found = self._store.load(key)
                if found is not None:
                    done[i] = Done(key, found.seconds)
                else:
                    todo.append((i, key, self._audio(task)))
            except (ValueError, OSError) as error:
                done[i] = Done(None, problem=str(error))
        for i, key, seconds in self._encode(todo):
            done[i] = Done(key, seconds, fresh=True)
        return [entry for entry in done if entry is not None]

    def _key(self, task: Task) -> str:
        which = (task.dialogue.id, str(task.copy)) if self._augment else ()
        return code_store.key(task.dialogue.audio, *self._shaped_by, *which)

    def _audio(self, task: Task) -> np.ndarray:
        audio = task.dialogue.samples(max_seconds=self._settings.max_seconds)
        if self._augment is None:
            return audio
        return self._augment(audio, id=task.dialogue.id, copy=task.copy)

    def _encode(
        self, todo: Sequence[tuple[int, str, np.ndarray]]
    ) -> Iterator[tuple[int, str, float]]:
        """Encodes and stores; both sides of a dialogue are rows of one batch."""
        longest_first = sorted(todo, key=lambda entry: -entry[2].shape[1])
        for frames, group in itertools.groupby(longest_first, key=lambda e: bucket(e[2].shape[1])):
            budget = int(self._settings.batch_seconds / types.FRAME_SECONDS)
            size = max(budget // (2 * frames), 1)
            for batch in _batched(group, size):
                # Mimi looks back only, so silence behind the end changes no code before it. Batches
                # are filled up: one shape a bucket is one compilation.
                rows = np.zeros((size, 2, frames * types.FRAME_SAMPLES), np.float32)
                for row, (_, _, audio) in zip(rows, batch, strict=False):
                    row[:, : audio.shape[1]] = audio
                codes = self._codec().encode(rows.reshape(2 * size, -1))[
                    :, : self._settings.codebooks
                ]
                codes = codes.reshape(size, -1, frames).astype(np.uint16)
                for (i, key, audio), array in zip(batch, codes, strict=False):
                    samples = audio.shape[1]
                    own = array[:, : math.ceil(samples / types.FRAME_SAMPLES)]
                    seconds = samples / types.SAMPLE_RATE
                    self._store.save(key, code_store.Codes(own, seconds))
                    yield i, key, seconds


def bucket(samples: int) -> int:
    """Frames that a signal is filled up to: at most a quarter more than it has, few different numbers."""
    frames = max(math.ceil(samples / types.FRAME_SAMPLES), 1)
    step = max(2 ** (frames.bit_length() - 3), 1)
    return math.ceil(frames / step) * step


def write(
    dialogues: Iterable[spoken.Spoken],
    dataset: Path,
    *,
    settings: Settings,
    made_with: records.Identity,
    skips: items.Skips,
    copies: int = 1,
    workers: int = 0,
    limits: config_lib.LimitsConfig = records.record_lib.LIMITS,
    progress: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Encodes dialogues and writes their records as ROOT/NAME.

    Args:
      dialogues: read lazily, in the order of the records.
      dataset: ROOT/NAME.
      settings: of the codes.
      made_with: identity of the codec and the tokenizer.
      skips: is told what is left out, and why.
      copies: records of each dialogue; more than one needs `settings.augment`.
      workers: processes; 0: this one (an accelerator belongs to one process).
      limits: what a record may hold.
      progress: is told after every record.

    Raises:
      ValueError: if copies would be the same, or more is left out than `skips` allows.
      RuntimeError: if a process dies.
    """
    store, tally, start = code_store.Store(settings.store), Tally(), time.monotonic()
    todo = tasks(dialogues, settings, copies=copies)
    with records.Writer(dataset, made_with, limits=limits) as writer:
        for task, done in results(todo, settings, workers=workers):
            tally.elapsed = time.monotonic() - start
            try:
                writer.add(record(task, done, store))
            except ValueError as error:
                reason = "refused record" if done.key else "unreadable audio"
                skips.add(task.id, reason, error)
                tally.skipped += 1
            else:
                tally.records += 1
                tally.seconds += done.seconds
                tally.fresh_seconds += done.seconds if done.fresh else 0.0
            progress(tally)
    return tally


def tasks(
    dialogues: Iterable[spoken.Spoken], settings: Settings, *, copies: int = 1
) -> Iterator[Task]:
    """Returns what is to be encoded.

    Raises:
      ValueError: if copies would be the same.
    """
    if copies < 1 or (copies > 1 and settings.augment is None):
        raise ValueError(
            f"copies: expected 1, or more with augmentation (they would all be the same), got {copies}"
        )
    return (Task(dialogue, copy) for dialogue in dialogues for copy in range(copies))


def record(task: Task, done: Done, store: code_store.Store) -> records.Record:
    """Returns the record of an encoded task.

    Raises:
      ValueError: if it could not be encoded.
    """
    if done.key is None:
        raise ValueError(done.problem)
    codes = store.load(done.key)
    if codes is None:
        raise ValueError(f"its codes are gone or damaged ({done.key[:12]}); run the command again")
    dialogue = task.dialogue
    return records.Record(
        id=task.id,
        kinds=dialogue.kinds,
        turns=dialogue.turns,
        facts=dialogue.facts,
        words=dialogue.words,
        user_words=dialogue.user_words,
        codes=records.encode_codes(codes.array),
        codebooks=len(codes.array),
        seconds=codes.seconds,
        image=dialogue.image,
    )


def results(
    tasks: Iterable[Task], settings: Settings, *, workers: int
) -> Iterator[tuple[Task, Done]]:
    """Yields every task with what became of it, in order; a few chunks are ahead of the caller."""
    if workers == 0:
        encoder = Encoder(settings)
        for chunk in chunks(tasks):
            yield from zip(chunk, encoder(chunk), strict=True)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of jax
    with futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(settings,)
    ) as pool:
        waiting: collections.deque = collections.deque()
        try:
            for chunk in chunks(tasks):
                waiting.append((chunk, pool.submit(_encode, without_images(chunk))))
                if len(waiting) > 2 * workers:
                    yield from _finish(*waiting.popleft())
            while waiting:
                yield from _finish(*waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def chunks(tasks: Iterable[Task]) -> Iterator[tuple[Task, ...]]:
    """Yields what a process takes at a time."""
    return _batched(tasks, CHUNK)


def without_images(tasks: Iterable[Task]) -> list[Task]:
    """Returns tasks that are lighter to send: only the audio is needed for codes."""
    return [
        dataclasses.replace(task, dialogue=dataclasses.replace(task.dialogue, image=None))
        for task in tasks
    ]


def default_workers() -> int:
    """Processes that suit this machine: none besides this one with an accelerator, else one a core."""
    import jax

    return 0 if jax.default_backend() != "cpu" else os.cpu_count() or 1


def _finish(chunk: Sequence[Task], future: futures.Future) -> Iterator[tuple[Task, Done]]:
    try:
        done = future.result()
    except futures.process.BrokenProcessPool as error:
        raise RuntimeError(
            "encode: a process died, perhaps for want of memory; what was encoded is kept: run the"
            " command again, with fewer --workers or --batch-seconds"
        ) from error
    yield from zip(chunk, done, strict=True)


def _batched(entries: Iterable[V], size: int) -> Iterator[tuple[V, ...]]:
    """itertools.batched, which Python 3.11 has not."""
    entries = iter(entries)
    while batch := tuple(itertools.islice(entries, size)):
        yield batch


_ENCODER: list[Encoder] = []  # of this process, if it is a worker


def _start(settings: Settings) -> None:
    _ENCODER.append(Encoder(settings))


def _encode(tasks: Sequence[Task]) -> list[Done]:
    return _ENCODER[0](tasks)
