"""Encodes spoken dialogues with Mimi and writes their records: batched, in several processes, resumable.

    workers, per chunk of dialogues   hash the audio; unless its codes are in the store: read, augment,
                                      sort by length, encode in batches, store
    this process, in order            codes from the store -> records

The store is keyed by content (`code_store`): an interrupted run resumes.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from pathlib import Path

from mvjax import messages
from mvjax.config import schema
from mvjax.data.ingest import items
from mvjax.data.records import dataset
from mvjax.data.speech import code_store, encoder, spoken

CHUNK = 16  # dialogues per call of a worker
STORE = ".codes"  # folder below the root of the records


@dataclasses.dataclass
class EncodeTally:
    """Progress of an encoding."""

    records: int = 0
    skipped: int = 0
    seconds: float = 0.0  # of audio
    fresh_seconds: float = 0.0  # of audio that was not in the store
    elapsed: float = 0.0  # wall time

    def hours_per_minute(self) -> float:
        """Throughput: hours of audio encoded per minute."""
        return self.fresh_seconds / 3600 / max(self.elapsed / 60, 1e-9)

    def summary(self) -> str:
        """Records, hours of audio, throughput and skipped dialogues so far."""
        done = f"{messages.counted(self.records, 'record')}, {self.seconds / 3600:.2f} h"
        return f"{done}, {self.hours_per_minute():.2f} h/min, {self.skipped} skipped"


def write(
    dialogues: Iterable[spoken.Spoken],
    path: Path,
    *,
    settings: encoder.EncodeSettings,
    made_with: dataset.Identity,
    skips: items.SkippedItems,
    copies: int = 1,
    workers: int = 0,
    limits: schema.LimitsConfig = dataset.LIMITS,
    progress: Callable[[EncodeTally], None] = lambda tally: None,
) -> EncodeTally:
    """Encodes dialogues, read lazily, and writes their records in order as ROOT/NAME, the path.

    `copies` records are made of a dialogue; more than one needs `settings.augment`. `workers` are processes;
    0: only this one (an accelerator belongs to one process). `progress` is called after every record.
    Raises ValueError, and writes nothing, if no dialogue can be encoded, or more are skipped than `skips`
    allows; RuntimeError if a process dies.
    """
    store, tally, start = code_store.CodeStore(settings.store), EncodeTally(), time.monotonic()
    todo = tasks(dialogues, settings, copies=copies)
    with dataset.RecordWriter(path, made_with, limits=limits) as writer:
        for task, done in _results(todo, settings, workers=workers):
            tally.elapsed = time.monotonic() - start
            try:
                writer.add(_record(task, done, store))
            except ValueError as error:
                skips.add(task.id, "refused record" if done.key else "unreadable audio", error)
                tally.skipped += 1
            else:
                tally.records += 1
                tally.seconds += done.seconds
                tally.fresh_seconds += done.seconds if done.fresh else 0.0
            progress(tally)
        if not tally.records:
            skips.refuse_nothing_read(path)
    return tally


def tasks(
    dialogues: Iterable[spoken.Spoken], settings: encoder.EncodeSettings, *, copies: int = 1
) -> Iterator[encoder.EncodeTask]:
    """One task per dialogue and copy; raises ValueError if copies would be identical."""
    if copies < 1 or (copies > 1 and settings.augment is None):
        raise ValueError(
            f"copies: expected 1, or more with augmentation (they would all be the same), got {copies}"
        )
    return (encoder.EncodeTask(dialogue, copy) for dialogue in dialogues for copy in range(copies))


def _record(
    task: encoder.EncodeTask, done: encoder.EncodeResult, store: code_store.CodeStore
) -> dataset.Record:
    """The record of an encoded task; raises ValueError if it could not be encoded."""
    if done.key is None:
        raise ValueError(done.problem)
    codes = store.load(done.key)
    if codes is None:
        raise ValueError(f"its codes are gone or damaged ({done.key[:12]}); run the command again")
    dialogue = task.dialogue
    return dataset.Record(
        id=task.id,
        kinds=dialogue.kinds,
        turns=dialogue.turns,
        facts=dialogue.facts,
        words=dialogue.words,
        user_words=dialogue.user_words,
        codes=codes.codes,
        codebooks=codes.streams,
        seconds=codes.seconds,
        image=dialogue.image,
    )


def _results(
    tasks: Iterable[encoder.EncodeTask], settings: encoder.EncodeSettings, *, workers: int
) -> Iterator[tuple[encoder.EncodeTask, encoder.EncodeResult]]:
    """Yields every task with its result, in order; workers run a few chunks ahead."""
    if workers == 0:
        encode = encoder.Encoder(settings)
        for chunk in encoder.batched(tasks, CHUNK):
            yield from zip(chunk, encode(chunk), strict=True)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of jax
    with futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        chunks = encoder.batched(tasks, CHUNK)
        submitted = ((chunk, pool.submit(_encode, settings, only_audio(chunk))) for chunk in chunks)
        try:
            for chunk, done in items.delayed(submitted, 2 * workers):
                yield from zip(chunk, done.result(), strict=True)
        except futures.process.BrokenProcessPool as error:
            raise RuntimeError(
                "encode: a process died, perhaps for want of memory; what was encoded is kept: run the"
                " command again, with fewer --workers or --batch-seconds"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def only_audio(tasks: Iterable[encoder.EncodeTask]) -> list[encoder.EncodeTask]:
    """Tasks as they are sent to a worker, wherever it runs: codes need no words and no image."""

    def reduced(dialogue: spoken.Spoken) -> spoken.Spoken:
        audio = dialogue.audio
        audio = audio.absolute() if isinstance(audio, Path) else audio
        return spoken.Spoken(dialogue.id, audio, None, ())

    return [dataclasses.replace(task, dialogue=reduced(task.dialogue)) for task in tasks]


def default_workers() -> int:
    """Number of workers for this machine: 0 with an accelerator, else one per core."""
    import jax

    return 0 if jax.default_backend() != "cpu" else os.cpu_count() or 1


_encoder = functools.cache(encoder.Encoder)  # of this process, if it is a worker


def _encode(
    settings: encoder.EncodeSettings, tasks: Sequence[encoder.EncodeTask]
) -> list[encoder.EncodeResult]:
    return _encoder(settings)(tasks)
