"""Image features on disk: entry n of NAME.features is the frozen encoder's output for image n of a dataset.

    NAME.features.json, NAME.features-00000-of-00002.array_record      bfloat16 [S, E] an image, little-endian

The index names the images, the encoder and the image size that they were computed with.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from mvjax import files, messages
from mvjax.config import schema
from mvjax.data import batch_spec, images
from mvjax.data.records import dataset, shards
from mvjax.data.records import index as index_lib
from mvjax.stores import staging
from mvjax.weights import frozen_files

FORMAT, VERSION = "mvjax image features", 1

Encode = Callable[[np.ndarray], np.ndarray]  # uint8 [B, size, size, 3] -> [B, S, E]


class FeatureIdentity(msgspec.Struct, frozen=True):
    """What features depend on besides the image."""

    siglip: str  # a hash of the encoder's files
    image_size: int  # pixels of a side


class FeatureIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of NAME.features.json; `images` are the image shards that were encoded."""

    format: str
    version: int
    made_with: FeatureIdentity
    tokens: int
    width: int
    images: tuple[shards.Shard, ...]
    features: tuple[shards.Shard, ...]


def index_path(path: Path) -> Path:
    """ROOT/NAME.features.json."""
    return path.with_name(f"{path.name}.features.json")


def write(
    path: Path,
    encode: Encode,
    made_with: FeatureIdentity,
    *,
    batch: int,
    limits: schema.LimitsConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    shard_bytes: int = dataset.SHARD_BYTES,
) -> FeatureIndex:
    """Encodes every image of the dataset ROOT/NAME; the files appear when all images are encoded.

    An image that cannot be decoded gets an empty entry; its records are bad records in training. `encode`
    takes `batch` images, the last are padded; `progress` gets the numbers of encoded and of all images.
    """
    reader = dataset.RecordReader(path, expected=None, limits=limits)
    total = sum(shard.count for shard in reader.index.images)
    size = made_with.image_size
    writer = shards.ShardWriter(_stem(path), shard_bytes=shard_bytes, compressed=False)
    tokens = width = 0
    try:
        for first in range(0, total, batch):
            numbers = range(first, min(first + batch, total))
            pixels, good = np.zeros((batch, size, size, 3), np.uint8), []
            for row, number in enumerate(numbers):
                with contextlib.suppress(ValueError):
                    decoded = images.decode(reader.image(number), limits=limits)
                    pixels[row] = images.resize_square(decoded, size)
                    good.append(row)
            features = np.asarray(encode(pixels)).astype(batch_spec.FEATURE_DTYPE)
            tokens, width = features.shape[1:]
            for row in range(len(numbers)):
                writer.write(features[row].tobytes() if row in good else b"")
            progress(numbers[-1] + 1, total)
        writer.close()
        index_path(path).unlink(missing_ok=True)
        index = FeatureIndex(
            FORMAT, VERSION, made_with, tokens, width, reader.index.images, writer.publish()
        )
        files.write_atomic(
            index_path(path), msgspec.json.format(msgspec.json.encode(index), indent=1)
        )
    finally:
        writer.discard()
    return index


def fresh(path: Path, made_with: FeatureIdentity) -> bool:
    """Whether a dataset's features are up to date: of this encoder and of its present images."""
    try:
        FeatureReader(path, expected=made_with)
    except (ValueError, FileNotFoundError):
        return False
    return True


class FeatureReader:
    """The features of the dataset ROOT/NAME, by the number of the image.

    Raises FileNotFoundError if there are none, and ValueError if they were made with another encoder or size
    than `expected`, the run's (None: open any), or of other images.
    """

    def __init__(self, path: Path, *, expected: FeatureIdentity | None):
        file = staging.here(index_path(path))
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: no such file; make it with `mvjax data features EXP.py`, or set data.features"
                " to False"
            )
        try:
            self.index = msgspec.json.decode(file.read_bytes(), type=FeatureIndex)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{file}: expected an index of features: {error}") from error
        problems = []
        if (self.index.format, self.index.version) != (FORMAT, VERSION):
            problems.append(f"expected {FORMAT} {VERSION}, got {self.index.format}")
        if expected is not None and self.index.made_with != expected:
            problems.append(f"made with {self.index.made_with}, this run has {expected}")
        if self.index.images != index_lib.read(path).images:
            problems.append("made of other images than the dataset has now")
        if problems:
            raise ValueError(
                f"{file}: {messages.names(problems, between='; ')}; run `mvjax data features EXP.py`"
            )
        self._entries = shards.ShardReader(_stem(path), self.index.features)

    def __getitem__(self, number: int) -> np.ndarray:
        """Returns bfloat16 [S, E]; ValueError if the image could not be decoded or the entry is damaged."""
        entry, shape = self._entries[number], (self.index.tokens, self.index.width)
        expected = math.prod(shape) * batch_spec.FEATURE_DTYPE.itemsize
        if len(entry) != expected:
            raise ValueError(
                f"features of image {number}: expected {expected} bytes, got {len(entry)}"
                " (0: the image could not be decoded)"
            )
        return np.frombuffer(entry, batch_spec.FEATURE_DTYPE).reshape(shape)


def made_with(frozen: schema.FrozenFiles, model: schema.ModelConfig) -> FeatureIdentity:
    """The identity that the features of a run must have."""
    siglip = files.joint_hash(map(frozen_files.file_hash, frozen_files.paths(frozen)["siglip"]))
    return FeatureIdentity(siglip, model.siglip.image_size)


def _stem(path: Path) -> Path:
    return path.with_name(f"{path.name}.features")
