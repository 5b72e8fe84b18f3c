"""The training data of a run as a pure function of (seed, step): `batches(config)[step]`.

    records --shuffled by epoch--> mixed by weight --index-seeded rows--> two-part batches

Row r of global batch s is built from element s * rows + r of an endless grain MapDataset, so
processes share the work by rows, and a resume needs nothing but the step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import cast

import grain

from mvjax import types
from mvjax.config import schema
from mvjax.data import collate, examples, mixing
from mvjax.data.records import bad_records, dataset


class Batches:
    """`batches[step]` is this process's rows of global batch `step`, for any step >= 0.

    Attributes:
      ids: builds the samples of that batch once more and returns their ids by part.
    """

    def __init__(
        self,
        speech: grain.MapDataset,
        speechless: grain.MapDataset,
        *,
        workers: int,
        ids: Callable[[int], dict[str, list[str]]],
    ):
        self._parts = (speech, speechless)
        self._workers = workers
        self.ids = ids
        self._pool = futures.ThreadPoolExecutor(workers) if workers else None
        self._ahead: dict[int, futures.Future[types.Batch]] = {}

    def __getitem__(self, step: int) -> types.Batch:
        """Builds one batch, or takes it from the threads that read ahead."""
        if step < 0:
            raise IndexError(f"batches: expected a step >= 0, got {step}")
        if self._pool is None:
            return self._make(step)
        wanted = range(step, step + 1 + self._workers)
        self._ahead = {s: future for s, future in self._ahead.items() if s in wanted}
        for s in wanted:
            if s not in self._ahead:
                self._ahead[s] = self._pool.submit(self._make, s)
        return self._ahead.pop(step).result()

    def _make(self, step: int) -> types.Batch:
        speech, speechless = (cast(types.Part, part[step]) for part in self._parts)
        return types.Batch(speech=speech, speechless=speechless)


def batches(
    config: schema.Config,
    *,
    process_index: int = 0,
    process_count: int = 1,
    history: mixing.History | None = None,
    listing: Path | None = None,
) -> Batches:
    """Opens the records of a run, making them first if they are missing and the config can.

    Args:
      config: the run.
      process_index: whose rows.
      process_count: among how many.
      history: the sampling weights of this run's steps; None: those of the config, from step 0 on.
      listing: the jsonl of bad records.

    Raises:
      FileNotFoundError: if records are missing.
      ValueError: if rows do not divide by processes, or records are damaged or made with another
        codec or tokenizer; later, when more than `bad_record_budget` bad records have been read.
    """
    data = config.data
    _check(data, process_count)
    ensure_records(data)
    history = history or mixing.start(data)
    build = examples.Rows(config, bad_records.BadRecords(data.bad_record_budget, listing))
    parts = []
    samples: dict[str, Callable[[int], list[str]]] = {}
    for number, (rows, make, frames) in enumerate(
        (
            (data.speech_rows, build.speech, data.speech_frames),
            (data.speechless_rows, build.speechless, data.speechless_tokens),
        )
    ):
        stack = functools.partial(
            collate.stack,
            codebooks=config.model.codebooks,
            frames=frames,
            image=build.image,
            by_frame=data.small_talk_image == "absent",
        )
        if not rows:
            empty = stack([])
            parts.append(grain.MapDataset.source([empty]).repeat())
            continue
        seed = config.train.seed * 2 + number

        def source(name: str, n: int, *, seed: int = seed, spoken: bool = number == 0):
            return build.source(name, seed=seed * 1000 + n, spoken=spoken)

        part = mixing.PARTS[number]
        mixed = mixing.mix(history, part, rows=rows, source=source, seed=seed)
        single, share = mixed.random_map(make), rows // process_count
        parts.append(single.batch(share, batch_fn=stack)[process_index::process_count])
        samples[make.__name__] = functools.partial(
            _ids, single, share=share, index=process_index, count=process_count
        )
    return Batches(
        *parts,
        workers=data.workers,
        ids=lambda step: {name: ids(step) for name, ids in samples.items()},
    )


def ensure_records(data: schema.DataConfig) -> None:
    """Checks that all records of the mixture exist; makes them if `data.prepare` is given.

    Raises:
      FileNotFoundError: listing the missing files.
    """
    root = Path(data.root).expanduser()

    def missing() -> list[str]:
        sources = (*data.speech, *data.speechless, *data.small_talk)
        paths = [examples.record_path(data, source.name) for source in sources]
        return sorted({str(path) for path in paths if not dataset.index_path(path).is_file()})

    if missing() and data.prepare is not None:
        data.prepare(root)
    if missing():
        raise FileNotFoundError(
            f"data.root {root}: expected records that are not there: {missing()}; "
            "make them, or change data.root or the sources"
        )


def _ids(samples: grain.MapDataset, step: int, *, share: int, index: int, count: int) -> list[str]:
    """The ids of a process's share of the rows of a batch."""
    first = (step * count + index) * share
    return [cast(types.Sample, samples[i]).id for i in range(first, first + share)]


def _check(data: schema.DataConfig, process_count: int) -> None:
    found = []
    for name in ("speech", "speechless"):
        rows = getattr(data, f"{name}_rows")
        if rows % process_count:
            found.append(f"{name}_rows {rows} is not divisible by {process_count} processes")
        if rows and not getattr(data, name):
            found.append(f"{name}_rows is {rows}, but {name} names no source")
    for source in (*data.speech, *data.speechless, *data.small_talk):
        if source.weight <= 0:
            found.append(f"source {source.name}: expected a weight above 0, got {source.weight}")
    if not 0 <= data.p_concat <= 1:
        found.append(f"p_concat: expected a probability, got {data.p_concat}")
    if data.p_concat > 0 and data.speech_rows and not data.small_talk:
        found.append("p_concat > 0 needs small_talk; set p_concat to 0 or name a source")
    if found:
        raise ValueError("data: " + "; ".join(found))
