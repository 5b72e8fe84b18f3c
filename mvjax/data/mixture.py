"""The training data of a run as a pure function of (seed, step): `batches(config)[step]`.

    records (on disk) --shuffled each epoch--> mixed by weight --> examples (rows) --> two-part batches
    data/records/       examples.EpochShuffle   mixing.mix          examples.py        collate.py

Row r of the global batch of step s is example s * rows + r of an endless sequence. Processes split a batch
by rows, and to resume, also on another number of processes, takes only the step. With `data.speech_every` the
speech rows of most steps are absent: they keep their place, so that every batch has the same shape.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import cast

import grain
import numpy as np

from mvjax import files, locks, messages, types
from mvjax.config import schema
from mvjax.data import batch_spec, collate, examples, mixing
from mvjax.data.records import bad_records, dataset, publishing
from mvjax.stores import staging

_LOCK = "lock"  # of a folder of records: while a process makes them


class Batches:
    """`batches[step]` is this process's rows of the global batch of a step, for any step >= 0.

    `parts` are this process's examples by step, as many as `counts` says; empty ones are left out. `workers`
    threads prefetch as many of the next batches.
    """

    def __init__(
        self,
        parts: dict[str, grain.MapDataset],
        counts: dict[str, int],
        spec: types.Batch,
        *,
        workers: int,
        speech_every: int = 1,
    ) -> None:
        self._parts, self._counts, self._spec, self._workers = parts, counts, spec, workers
        self._speech_every = speech_every
        self._pool = futures.ThreadPoolExecutor(workers) if workers else None
        self._prefetched: dict[int, futures.Future[types.Batch]] = {}

    def __getitem__(self, step: int) -> types.Batch:
        """Builds a batch, or takes it from the prefetch, and prefetches the next ones."""
        if step < 0:
            raise IndexError(f"batches: expected a step >= 0, got {step}")
        if self._pool is None:
            return self._build(step)
        wanted = range(step, step + 1 + self._workers)
        self._prefetched = {s: future for s, future in self._prefetched.items() if s in wanted}
        for s in wanted:
            if s not in self._prefetched:
                self._prefetched[s] = self._pool.submit(self._build, s)
        return self._prefetched.pop(step).result()

    def ids(self, step: int) -> dict[str, list[str]]:
        """The ids of a batch's rows by part; builds the rows for it."""
        return {name: [row.id for row in self._rows(name, step)] for name in mixing.PARTS}

    def _build(self, step: int) -> types.Batch:
        stacked = {}
        for name in mixing.PARTS:
            spec, count = getattr(self._spec, name), self._counts[name]
            stacked[name] = collate.stack(self._rows(name, step), rows=count, spec=spec)
        return types.Batch(**stacked)

    def _rows(self, name: str, step: int) -> list[types.Example]:
        absent = name == "speech" and step % self._speech_every
        if absent or name not in self._parts:
            return []
        return cast(list[types.Example], self._parts[name][step])


def batches(
    config: schema.Config,
    *,
    process_index: int = 0,
    process_count: int = 1,
    history: mixing.History | None = None,
    listing: Path | None = None,
) -> Batches:
    """Opens the records of a run; makes missing ones first if `data.prepare` is set.

    `history` has the mixture weights of this run's steps (None: the config's, from step 0 on); `listing`, a
    jsonl, gets the bad records. Raises FileNotFoundError if records are missing, and ValueError if they or
    the config do not fit the run; later, when more than `bad_record_budget` bad records have been read.
    """
    data = config.data
    _check(data, process_count)
    ensure_records(data)
    builder = examples.ExampleBuilder(
        config, bad_records.BadRecords(data.bad_record_budget, listing)
    )
    parts, counts = {}, {}
    for name in mixing.PARTS:
        counts[name] = getattr(data, f"{name}_rows") // process_count
        if counts[name]:
            endless = rows(config, name, builder, history=history)
            shares = endless.batch(counts[name], batch_fn=list)
            parts[name] = shares[process_index::process_count]
    how = {"workers": data.workers, "speech_every": data.speech_every}
    return Batches(parts, counts, batch_spec.batch_spec(config), **how)


def ensure_records(data: schema.DataConfig) -> None:
    """Makes missing records of the mixture if `data.prepare` is set, else raises FileNotFoundError.

    Of several processes that miss them, one makes them and the others wait.
    """
    root = files.local(data.root)
    if missing_records(data) and data.prepare is not None:
        root.mkdir(parents=True, exist_ok=True)
        with locks.held(root / _LOCK, wait=True):
            if missing_records(data):
                with publishing.published(files.output(data.root)) as made:
                    data.prepare(made)
    if missing := missing_records(data):
        raise FileNotFoundError(
            f"data.root {root}: expected records that are not there: {missing}; "
            "make them, or change data.root or the sources"
        )


def missing_records(data: schema.DataConfig) -> list[str]:
    """Returns the records of the mixture that are not there."""
    sources = (*data.speech, *data.speechless, *data.small_talk)
    paths = [examples.record_path(data, source.name) for source in sources]
    return sorted(
        {str(path) for path in paths if not staging.here(dataset.index_path(path)).is_file()}
    )


def records_identity(data: schema.DataConfig) -> dict[str, str]:
    """Returns {dataset: SHA-256 of its index}, which holds the hashes of all its records and images."""
    names = sorted({s.name for s in (*data.speech, *data.speechless, *data.small_talk)})
    paths = {name: dataset.index_path(examples.record_path(data, name)) for name in names}
    return {name: files.file_hash(staging.here(path)) for name, path in paths.items()}


def rows(
    config: schema.Config,
    part: str,
    builder: examples.ExampleBuilder,
    *,
    build: Callable[[examples.DecodedRecord, np.random.Generator], object] | None = None,
    history: mixing.History | None = None,
) -> grain.MapDataset:
    """The endless rows of a part, of all processes; `build` makes a row of a record (None: its example)."""
    spoken = part == "speech"
    seed = config.train.seed * 2 + mixing.PARTS.index(part)
    count = getattr(config.data, f"{part}_rows")

    def source(name: str, number: int) -> examples.EpochShuffle:
        return builder.source(name, seed=seed * 1000 + number, spoken=spoken)

    history = history or mixing.start(config.data)
    mixed = mixing.mix(history, part, rows=count, source=source, seed=seed)
    return mixed.random_map(build or (builder.speech if spoken else builder.speechless))


def _check(data: schema.DataConfig, process_count: int) -> None:
    problems = []
    for name in mixing.PARTS:
        rows = getattr(data, f"{name}_rows")
        if rows % process_count:
            problems.append(f"{name}_rows {rows} is not divisible by {process_count} processes")
        if rows and not getattr(data, name):
            problems.append(f"{name}_rows is {rows}, but {name} names no source")
    for source in (*data.speech, *data.speechless, *data.small_talk):
        if source.weight <= 0:
            problems.append(f"source {source.name}: expected a weight above 0, got {source.weight}")
    if not 0 <= data.p_concat <= 1:
        problems.append(f"p_concat: expected a probability, got {data.p_concat}")
    if data.p_concat > 0 and data.speech_rows and not data.small_talk:
        problems.append("p_concat > 0 needs small_talk; set p_concat to 0 or name a source")
    if problems:
        raise ValueError("data: " + messages.names(problems, between="; "))
