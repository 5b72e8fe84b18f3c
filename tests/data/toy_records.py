"""A toy mixture on disk: 20 spoken records about pictures, 30 of text, 9 of unrelated talk."""

import dataclasses

import numpy as np

from mvjax.config import schema
from mvjax.data import examples, images
from mvjax.data.records import dataset, shards

CODES, FRAMES, SIZE = 50, 40, 16
VISUAL, TALK = 20, 9  # records; visual codes are below 25, talk codes from 25 on


def record(i, name, *, low=0, image=True, spoken=True):
    rng = np.random.default_rng([i, low])
    frames = int(rng.integers(12, 30))
    codes = rng.integers(low, low + CODES // 2, (4, frames)) if spoken else np.zeros((0, 0))
    pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    end = (frames - 6) * 0.08
    words = (
        dataset.Word("the", end - 0.3, end - 0.1),
        dataset.Word("digit", end - 0.1, end),
    )
    return dataset.Record(
        id=f"{name}-{i}",
        kinds=("digit",),
        turns=(
            dataset.Turn("user", "what digit is this"),
            dataset.Turn("assistant", "the digit is seven" if i % 2 else "i see the digit six"),
        ),
        image=images.encode_png(pixels) if image else None,
        words=words if spoken else None,
        codes=dataset.encode_codes(codes),
        codebooks=4 if spoken else 0,
        seconds=frames * 0.08 if spoken else 0.0,
    )


def make_config(root, codec):
    model = schema.ModelConfig(
        siglip=schema.SiglipConfig(image_size=SIZE, patch=8),
        audio_vocab=CODES,
        codebooks_out=2,
        delays=(0, 0, 1, 0, 1),
    )
    return schema.Config(
        frozen=schema.FrozenFiles(
            moshi="",
            siglip="",
            codec=str(codec),
            tokenizer="package:mvjax.digits/assets/tokenizer.model",
        ),
        model=model,
        data=schema.DataConfig(
            root=str(root),
            prepare=_prepare(codec),
            speech=(schema.Source("visual"),),
            speechless=(schema.Source("text", 3.0), schema.Source("visual", 1.0)),
            small_talk=(schema.Source("talk"),),
            speech_rows=4,
            speechless_rows=12,
            speech_frames=FRAMES,
            speechless_tokens=24,
        ),
    )


def _prepare(codec):
    def prepare(root):
        frozen = schema.FrozenFiles(
            moshi="",
            siglip="",
            codec=str(codec),
            tokenizer="package:mvjax.digits/assets/tokenizer.model",
        )
        made_with = dataset.identity(frozen)
        for name, items in (
            ("visual", [record(i, "visual") for i in range(VISUAL)]),
            ("text", [record(i, "text", spoken=False) for i in range(30)]),
            ("talk", [record(i, "talk", low=CODES // 2, image=False) for i in range(TALK)]),
        ):
            dataset.write(root / name, items, made_with)

    return prepare


def with_data(config, **changes):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def assert_equal(a, b):
    for x, y in zip((*a.speech, *a.speechless), (*b.speech, *b.speechless), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def spoil(config, name, numbers):
    (path,) = shards.paths(examples.record_path(config.data, name), 1)
    data = bytearray(path.read_bytes())
    for i in numbers:
        data[data.index(f"{name}-{i}".encode())] ^= 255
    path.write_bytes(data)
