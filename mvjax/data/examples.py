"""Builds training examples: one example is one row of a batch, made of one record (or three).

    record on disk -> DecodedRecord -> types.Example -> a row of types.Part
                      pixels, codes    cropped, with     stacked and padded
                                       unrelated talk    by collate.stack

A speech example has the record's codes, a speechless one the transcript as text tokens; `windows` cuts both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mvjax import files, types
from mvjax.config import schema
from mvjax.data import collate, image_features, images, mixing, streams, tokenizers, windows
from mvjax.data.records import bad_records, dataset


class DecodedRecord(NamedTuple):
    """A record with decoded image and codes."""

    name: str  # DATASET/ID
    record: dataset.StoredRecord
    image: np.ndarray | None  # uint8 [size, size, 3], or bfloat16 features [S, E]
    codes: np.ndarray  # int32 [K, T]; of a speechless source [0, 0]


class EpochShuffle:
    """An endless view of a dataset: shuffled anew each epoch, bad records counted and replaced.

    `load` reads and decodes the record with a number; it raises ValueError for a bad one.
    """

    def __init__(
        self,
        reader: dataset.RecordReader,
        load: Callable[[int], DecodedRecord],
        bad: bad_records.BadRecords,
        seed: int,
    ):
        if not len(reader):
            raise ValueError(f"{reader.path}: expected records, got none; make the file again")
        self._reader, self._load, self._bad = reader, load, bad
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, epoch]).permutation(len(reader))
        )

    def __len__(self) -> int:
        return mixing.ENDLESS

    def __getitem__(self, index: int) -> DecodedRecord:
        """Loads one record; a bad one is replaced by the next good one of the dataset."""
        count = len(self._reader)
        epoch, place = divmod(index, count)
        number = int(self._order(epoch)[place])
        for _ in range(count):
            try:
                return self._load(number)
            except ValueError as error:
                self._bad.add(f"{self._reader.path.name}[{number}]", error, id=self._id(number))
            number = (number + 1) % count
        raise ValueError(f"{self._reader.path}: expected a readable record, every one is bad")

    def _id(self, number: int) -> str | None:
        try:
            return self._reader.stored(number).id
        except ValueError:
            return None


class ExampleBuilder:
    """Opens the datasets of a run and builds the examples of both parts."""

    def __init__(self, config: schema.Config, bad: bad_records.BadRecords):
        self._config = config
        self._features = None
        if config.data.features:
            encoder = image_features.made_with(config.frozen, config.model)
            self._features = functools.cache(
                lambda path: image_features.FeatureReader(path, expected=encoder)
            )
        self._tokenizer = tokenizers.load(config)
        self._bad = bad
        made_with, limits = dataset.identity(config.frozen), config.data.limits
        self._open = functools.cache(
            lambda path: dataset.RecordReader(path, expected=made_with, limits=limits)
        )
        talk = config.data.small_talk if config.data.p_concat > 0 else ()
        self._talk = [self.source(s.name, seed=0, spoken=True) for s in talk]
        weights = np.array([s.weight for s in talk], float)
        self._talk_weights = weights / weights.sum()

    def source(self, name: str, *, seed: int, spoken: bool) -> EpochShuffle:
        """Opens a dataset for speech examples (with codes) or speechless ones (transcripts)."""
        reader = self._open(record_path(self._config.data, name))
        load = functools.partial(self._load, reader, spoken=spoken)
        return EpochShuffle(reader, load, self._bad, seed)

    def speech(self, loaded: DecodedRecord, rng: np.random.Generator) -> types.Example:
        """A spoken dialogue, with unrelated talk around it with probability `p_concat`."""
        data = self._config.data
        pieces = self.pieces(loaded, rng)
        codes = np.concatenate([x.codes[:, place] for x, place in pieces], axis=1)
        name = "+".join(f"{x.name}[{p.start}:{p.stop}]" for x, p in pieces if p.stop > p.start)
        present = data.small_talk_image == "present"
        seen = [np.full(place.stop - place.start, present or x is loaded) for x, place in pieces]
        loss_mask = np.ones(codes.shape[1], bool)
        return types.Example(name, codes, loss_mask, np.concatenate(seen), loaded.image)

    def pieces(
        self, loaded: DecodedRecord, rng: np.random.Generator
    ) -> list[tuple[DecodedRecord, slice]]:
        """Draws the records of a spoken row, and the frames of each; `windows` says how."""
        data = self._config.data
        if not self._talk or rng.random() >= data.p_concat:
            return [(loaded, windows.crop(loaded.codes.shape[1], data.speech_frames, rng))]
        joined = (self._unrelated(rng), loaded, self._unrelated(rng))
        bounds = (windows.spoken_exchanges(x.record) for x in joined)
        cut = windows.join(*bounds, size=data.speech_frames, rng=rng)
        return list(zip(joined, cut, strict=True))

    def speechless(self, loaded: DecodedRecord, rng: np.random.Generator) -> types.Example:
        """A dialogue's transcript as text tokens: the exchanges that fit `speechless_tokens`."""
        turns, size = loaded.record.turns, self._config.data.speechless_tokens
        tokens, kept = self.turns(loaded, rng)
        whole = kept == slice(0, len(turns))
        name = loaded.name if whole else f"{loaded.name}[{kept.start}:{kept.stop}]"
        ids, mask = streams.joined_turns(turns[kept], tokens[kept], size)
        return types.Example(name, ids[None], mask, np.ones(len(mask), bool), loaded.image)

    def turns(
        self, loaded: DecodedRecord, rng: np.random.Generator
    ) -> tuple[list[list[int]], slice]:
        """Draws the turns of a speechless row; returns the tokens of all turns, and which the row holds."""
        turns = loaded.record.turns
        tokens = [streams.turn_tokens(turn, self._tokenizer) for turn in turns]
        bounds, spans = windows.written_exchanges(turns, [len(one) for one in tokens])
        kept = spans[windows.whole(bounds, self._config.data.speechless_tokens - 1, rng)]
        return tokens, slice(kept[0][0], kept[-1][1])

    def _unrelated(self, rng: np.random.Generator) -> DecodedRecord:
        source = self._talk[int(rng.choice(len(self._talk), p=self._talk_weights))]
        return source[int(rng.integers(1 << 40))]

    def _load(self, reader: dataset.RecordReader, number: int, *, spoken: bool) -> DecodedRecord:
        record = reader.stored(number)
        codes, said = np.zeros((0, 0), np.int32), record.turns
        if spoken:
            codes = collate.speech_codes(record, self._tokenizer, self._config.model)
            said = record.words or ()
        streams.check_known((x.text for x in said), self._tokenizer, place=record.id)
        name = f"{reader.path.name}/{record.id}"
        return DecodedRecord(name, record, self._image(reader, record), codes)

    def _image(
        self, reader: dataset.RecordReader, record: dataset.StoredRecord
    ) -> np.ndarray | None:
        """A record's image, as pixels or features."""
        if record.image is None:
            return None
        if self._features is not None:
            return self._features(reader.path)[record.image]
        decoded = images.decode(reader.image(record.image), limits=self._config.data.limits)
        return images.resize_square(decoded, self._config.model.siglip.image_size)


def record_path(data: schema.DataConfig, name: str) -> Path:
    """ROOT/NAME."""
    return files.local(data.root) / name
