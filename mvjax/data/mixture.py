"""The training data of a run as a pure function of (seed, step): `batches(config)[step]`.

    records (on disk) --shuffled each epoch--> mixed by weight --> examples (rows) --> two-part batches
    data/records/       examples.EpochShuffle   mixing.mix          examples.py        collate.py

Row r of the global batch of step s is example s * rows + r of an endless sequence. Processes split a batch
by rows, and to resume, also on another number of processes, takes only the step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import cast

import grain

from mvjax import types
from mvjax.config import schema
from mvjax.data import batch_spec, collate, examples, mixing
from mvjax.data.records import bad_records, dataset


class PartBatches:
    """This process's rows of one part of the global batches.

    Args:
      examples: endless, of all processes; () for a part without rows.
      stack: makes a part of a batch from its examples.
      rows: of a global batch.
      process_index: whose rows.
      process_count: among how many processes.
    """

    def __init__(
        self,
        examples: grain.MapDataset | tuple[()],
        stack: Callable[[Sequence[types.Example]], types.Part],
        *,
        rows: int,
        process_index: int,
        process_count: int,
    ):
        self._examples, self._stack = examples, stack
        self._share = rows // process_count
        self._index, self._count = process_index, process_count

    def __getitem__(self, step: int) -> types.Part:
        """Builds and stacks the rows of a step."""
        return self._stack(self._rows(step))

    def ids(self, step: int) -> list[str]:
        """The ids of the rows of a step, which are built for it."""
        return [example.id for example in self._rows(step)]

    def _rows(self, step: int) -> list[types.Example]:
        first = (step * self._count + self._index) * self._share
        rows = range(first, first + self._share)
        return [cast(types.Example, self._examples[i]) for i in rows]


class Batches:
    """`batches[step]` is this process's rows of the global batch of a step, for any step >= 0.

    Args:
      parts: {"speech": ..., "speechless": ...}.
      workers: threads that prefetch as many of the next batches; 0: no prefetch.
    """

    def __init__(self, parts: dict[str, PartBatches], *, workers: int):
        self._parts, self._workers = parts, workers
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
        return {name: part.ids(step) for name, part in self._parts.items()}

    def _build(self, step: int) -> types.Batch:
        return types.Batch(**{name: part[step] for name, part in self._parts.items()})


def batches(
    config: schema.Config,
    *,
    process_index: int = 0,
    process_count: int = 1,
    history: mixing.History | None = None,
    listing: Path | None = None,
) -> Batches:
    """Opens the records of a run; makes missing ones first if `data.prepare` is set.

    Args:
      config: the run.
      process_index: whose rows.
      process_count: among how many.
      history: the mixture weights of this run's steps; None: those of the config, from step 0 on.
      listing: a jsonl that gets the bad records.

    Raises:
      FileNotFoundError: if records are missing.
      ValueError: if rows do not divide by processes, or records are damaged or made with another
        codec or tokenizer; later, when more than `bad_record_budget` bad records have been read.
    """
    data = config.data
    _check(data, process_count)
    ensure_records(data)
    builder = examples.ExampleBuilder(
        config, bad_records.BadRecords(data.bad_record_budget, listing)
    )
    history = history or mixing.start(data)
    parts, spec = {}, batch_spec.batch_spec(config)
    for number, name in enumerate(mixing.PARTS):
        rows = getattr(data, f"{name}_rows")
        seed = config.train.seed * 2 + number
        parts[name] = PartBatches(
            _examples(builder, history, name, rows=rows, seed=seed) if rows else (),
            functools.partial(collate.stack, spec=getattr(spec, name)),
            rows=rows,
            process_index=process_index,
            process_count=process_count,
        )
    return Batches(parts, workers=data.workers)


def ensure_records(data: schema.DataConfig) -> None:
    """Checks that all records of the mixture exist; makes them if `data.prepare` is set.

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


def _examples(
    builder: examples.ExampleBuilder, history: mixing.History, part: str, *, rows: int, seed: int
) -> grain.MapDataset:
    """The endless examples of a part, of all processes."""
    spoken = part == "speech"

    def source(name: str, number: int) -> examples.EpochShuffle:
        return builder.source(name, seed=seed * 1000 + number, spoken=spoken)

    mixed = mixing.mix(history, part, rows=rows, source=source, seed=seed)
    build = builder.speech if spoken else builder.speechless
    return mixed.random_map(build)


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
        raise ValueError("data: " + "; ".join(problems))
