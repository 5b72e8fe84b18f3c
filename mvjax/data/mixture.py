"""The training data of a run as a pure function of (seed, step): `batches(config)[step]`.

    records --shuffled by epoch--> mixed by weight --index-seeded rows--> two-part batches

Row r of global batch s is built from element s * rows + r of an endless grain MapDataset, so
processes share the work by rows, and a resume needs nothing but the step.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import cast

import grain
import numpy as np
import sentencepiece

from mvjax import config as config_lib
from mvjax import types
from mvjax.data import batch as batch_lib
from mvjax.data import records, streams
from mvjax.weights import locate

_LOG = logging.getLogger(__name__)
_ENDLESS = 1 << 48  # elements; grain adds and multiplies lengths, so not sys.maxsize


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
    config: config_lib.Config, *, process_index: int = 0, process_count: int = 1
) -> Batches:
    """Opens the records of a run, making them first if they are missing and the config can.

    Raises:
      FileNotFoundError: if records are missing.
      ValueError: if rows do not divide by processes, or records are damaged or made with another
        codec or tokenizer; later, when more than `bad_record_budget` bad records have been read.
    """
    data = config.data
    _check(data, process_count)
    ensure_records(data)
    build = _Rows(config)
    parts = []
    samples: dict[str, Callable[[int], list[str]]] = {}
    for number, (rows, sources, make, frames) in enumerate(
        (
            (data.speech_rows, data.speech, build.speech, data.speech_frames),
            (data.speechless_rows, data.speechless, build.speechless, data.speechless_tokens),
        )
    ):
        stack = functools.partial(
            batch_lib.stack,
            codebooks=config.model.codebooks,
            frames=frames,
            size=config.model.siglip.image_size,
        )
        if not rows:
            empty = stack([])
            parts.append(grain.MapDataset.source([empty]).repeat())
            continue
        seed = config.train.seed * 2 + number
        mixed = _mix(build, sources, seed, spoken=number == 0)
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


def ensure_records(data: config_lib.DataConfig) -> None:
    """Checks that all record files of the mixture exist; makes them if `data.prepare` is given.

    Raises:
      FileNotFoundError: listing the missing files.
    """
    root = Path(data.root).expanduser()

    def missing() -> list[str]:
        sources = (*data.speech, *data.speechless, *data.small_talk)
        paths = [record_path(data, source.name) for source in sources]
        return sorted({str(path) for path in paths if not records.index_path(path).is_file()})

    if missing() and data.prepare is not None:
        data.prepare(root)
    if missing():
        raise FileNotFoundError(
            f"data.root {root}: expected record files that are not there: {missing()}; "
            "make them, or change data.root or the sources"
        )


def record_path(data: config_lib.DataConfig, name: str) -> Path:
    """NAME.array_record below the root."""
    return Path(data.root).expanduser() / f"{name}{records.SUFFIX}"


class _Source:
    """An endless view of one record file: shuffled anew each epoch, bad records replaced."""

    def __init__(self, reader: records.Reader, load, bad: _BadRecords, seed: int):
        if not len(reader):
            raise ValueError(f"{reader.path}: expected records, got none; make the file again")
        self._reader, self._load, self._bad, self._seed = reader, load, bad, seed
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int):
        """One element; a bad record is replaced by the next good one of the file."""
        count = len(self._reader)
        epoch, place = divmod(index, count)
        number = int(self._order(epoch)[place])
        for _ in range(count):
            try:
                return self._load(self._reader[number])
            except ValueError as error:
                self._bad.add(f"{self._reader.path.name}[{number}]", error)
            number = (number + 1) % count
        raise ValueError(f"{self._reader.path}: expected a readable record, every one is bad")

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._reader))


class _BadRecords:
    """Counts the bad records met so far, in all files, and stops the run past the budget."""

    def __init__(self, budget: int):
        self._budget = budget
        self._found: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, name: str, error: ValueError) -> None:
        with self._lock:
            if name not in self._found:
                self._found[name] = str(error)
                _LOG.warning(
                    "skipping bad record %s (%d so far): %s", name, len(self._found), error
                )
            if len(self._found) > self._budget:
                listed = "\n  ".join(f"{name}: {why}" for name, why in sorted(self._found.items()))
                raise ValueError(
                    f"data: at most {self._budget} bad records (data.bad_record_budget), got "
                    f"{len(self._found)}; repair the files or raise the budget:\n  {listed}"
                ) from error


class _Rows:
    """Builds the rows of both parts from loaded records."""

    def __init__(self, config: config_lib.Config):
        self._config = config
        self._size = config.model.siglip.image_size
        self._tokenizer = sentencepiece.SentencePieceProcessor(
            model_file=str(locate.resolve(config.frozen.tokenizer))
        )
        self._made_with = records.identity(config.frozen)
        self._bad = _BadRecords(config.data.bad_record_budget)
        self._open = functools.cache(self._reader)
        talk = config.data.small_talk if config.data.p_concat > 0 else ()
        self._talk = [self.source(s.name, seed=0, spoken=True) for s in talk]
        weights = np.array([s.weight for s in talk], float)
        self._talk_weights = weights / weights.sum()

    def source(self, name: str, *, seed: int, spoken: bool) -> _Source:
        """Opens a record file as (record, image, codes) or (record, image)."""
        load = self._load_spoken if spoken else self._load_text
        return _Source(self._open(name), load, self._bad, seed)

    def speech(self, loaded, rng: np.random.Generator) -> types.Sample:
        """A spoken dialogue, with unrelated talk around it with probability p_concat."""
        data = self._config.data
        record, image, codes = loaded
        keep = batch_lib.last_word_frame(record)
        if self._talk and rng.random() < data.p_concat and keep <= data.speech_frames:
            before, after = (self._unrelated(rng) for _ in range(2))
            codes = batch_lib.switch(
                before, codes, after, keep=keep, frames=data.speech_frames, rng=rng
            )
        else:
            codes = batch_lib.crop(codes, data.speech_frames, rng)
        return types.Sample(record.id, codes, np.ones(codes.shape[1], bool), image)

    def speechless(self, loaded, rng: np.random.Generator) -> types.Sample:
        """A dialogue's transcript."""
        record, image = loaded
        ids, mask = streams.speechless_row(
            record.turns, self._tokenizer, self._config.data.speechless_tokens
        )
        return types.Sample(record.id, ids[None], mask, image)

    def _unrelated(self, rng: np.random.Generator) -> np.ndarray:
        source = self._talk[int(rng.choice(len(self._talk), p=self._talk_weights))]
        return source[int(rng.integers(1 << 40))][2]

    def _load_spoken(self, record: records.Record):
        codes = batch_lib.speech_codes(record, self._tokenizer, self._config.model)
        return record, batch_lib.pixels(record, self._size), codes

    def _load_text(self, record: records.Record):
        return record, batch_lib.pixels(record, self._size)

    def _reader(self, name: str) -> records.Reader:
        path = record_path(self._config.data, name)
        return records.Reader(path, expected=self._made_with)


def _mix(
    build: _Rows, sources: Sequence[config_lib.Source], seed: int, *, spoken: bool
) -> grain.MapDataset:
    """All sources, endless, in proportion to their weights."""
    datasets = [
        grain.MapDataset.source(build.source(s.name, seed=seed * 1000 + n, spoken=spoken))
        for n, s in enumerate(sources)
    ]
    return grain.MapDataset.mix(datasets, weights=[s.weight for s in sources]).seed(seed)


def _ids(samples: grain.MapDataset, step: int, *, share: int, index: int, count: int) -> list[str]:
    """The ids of a process's share of the rows of a batch."""
    first = (step * count + index) * share
    return [cast(types.Sample, samples[i]).id for i in range(first, first + share)]


def _check(data: config_lib.DataConfig, process_count: int) -> None:
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
