"""Measures the throughput of the data pipeline: batches of the digits run, and of the paper's shape.

    python tools/bench_data.py FOLDER

The digits records and synthetic ones of the paper's shape (JPEG photographs of 640 x 480, dialogues of 100 s)
are made below FOLDER once. Rates are of this process alone, without and with prefetch threads. With
`--step-frames`, the throughput of the digits training step, the digits rate is printed as a multiple of it.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import io
import pstats
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mvjax.config import schema
from mvjax.data import examples, mixture
from mvjax.data.records import dataset
from mvjax.digits import frozen_models, recipe
from mvjax.digits import records as records_lib

RECORDS = 96  # of the paper's shape, in each dataset
SECONDS = 100.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--step-frames", type=float, metavar="N", help="throughput of the digits step, frames/s"
    )
    args = parser.parse_args()
    digits = recipe.digits()
    digits = with_data(digits, root=str(args.folder / "digits"))
    if not (args.folder / "digits").is_dir():
        records_lib.prepare(args.folder / "digits", dialogues=60, seed=0)
    rate = measure("digits", digits, steps=40)
    if args.step_frames:
        print(
            f"  the step consumes {args.step_frames:,.0f} frames/s: {rate / args.step_frames:.1f} x"
        )
    paper = paper_shape(args.folder / "paper")
    measure("paper's shape", paper, steps=4)
    measure("paper's shape", with_data(paper, workers=2), steps=4)
    profile(paper)


def with_data(run: schema.Config, **fields) -> schema.Config:
    return dataclasses.replace(run, data=dataclasses.replace(run.data, **fields))


def measure(name: str, run: schema.Config, *, steps: int) -> float:
    """Prints and returns frames/s of the batches of a run."""
    batches = mixture.batches(run)
    batches[0]
    start = time.perf_counter()
    for step in range(1, 1 + steps):
        batch = batches[step]
    seconds = (time.perf_counter() - start) / steps
    frames = sum(part.codes.shape[0] * part.codes.shape[2] for part in batch)
    size = sum(array.nbytes for part in batch for array in part)
    rows_made = sum(len(part.codes) for part in batch)
    print(
        f"{name}, {run.data.workers} prefetch threads: {1 / seconds:.2f} batches/s of {rows_made} rows,"
        f" {frames / seconds:,.0f} frames/s, {size / seconds / 1e6:,.0f} MB/s of arrays"
    )
    return frames / seconds


def paper_shape(folder: Path) -> schema.Config:
    """16 spoken rows of 1,250 frames and 48 of text; images of 448 pixels."""
    frozen = dataclasses.replace(frozen_models.FROZEN)
    model = schema.ModelConfig()
    data = schema.DataConfig(
        root=str(folder),
        speech=(schema.Source("speech"),),
        speechless=(schema.Source("text"),),
        small_talk=(schema.Source("talk"),),
    )
    run = schema.Config(frozen=frozen, model=model, data=data)
    for name in ("speech", "text", "talk"):
        if not dataset.index_path(examples.record_path(data, name)).is_file():
            made = (synthetic(i, name) for i in range(RECORDS))
            dataset.write(examples.record_path(data, name), made, dataset.identity(frozen))
    return run


def synthetic(i: int, name: str) -> dataset.Record:
    """A dialogue of the paper's length; the words are those of the shipped tokenizer."""
    rng = np.random.default_rng([i, len(name)])
    spoken = name != "text"
    frames = round(SECONDS * 12.5) if spoken else 0
    codes = rng.integers(0, 2048, (16, frames))
    texts = [
        "what colour is the digit",
        "the digit is red",
        "where is it",
        "it is in the middle",
    ] * 3
    turns = tuple(
        dataset.Turn("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(texts)
    )
    said = " ".join(texts[1::2]).split()
    step = SECONDS / (len(said) + 1)
    words = tuple(dataset.Word(w, n * step, (n + 0.5) * step) for n, w in enumerate(said))
    return dataset.Record(
        id=f"{name}-{i}",
        kinds=("synthetic",),
        turns=turns,
        image=photograph(rng) if name != "talk" else None,
        words=words if spoken else None,
        codes=dataset.encode_codes(codes) if spoken else b"",
        codebooks=16 if spoken else 0,
        seconds=SECONDS if spoken else 0.0,
    )


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of 640 x 480 with smooth areas, edges and grain, about as large as a photograph's."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
    grain = rng.normal(0, 8, smooth.shape)
    picture = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=85)
    return file.getvalue()


def profile(run: schema.Config) -> None:
    """Prints where the time of a batch goes."""
    batches = mixture.batches(run)
    batches[0]
    profiler = cProfile.Profile()
    profiler.runcall(lambda: [batches[step] for step in (1, 2)])
    stats = pstats.Stats(profiler)
    whole = stats.total_tt
    wanted = {
        "decode": "images.py", "resize_square": "images.py", "speech_codes": "collate.py",
        "check_known": "streams.py", "turn_tokens": "streams.py", "stored": "records/dataset.py",
        "image": "records/dataset.py", "stack": "collate.py",
    }  # fmt: skip
    shares = {
        f"{file.removesuffix('.py')}.{name}": entry[3] / whole
        for (path, _, name), entry in stats.stats.items()
        if (file := wanted.get(name)) and path.endswith(f"mvjax/data/{file}")
    }
    found = sorted(shares.items(), key=lambda item: -item[1])
    print("where it goes: " + ", ".join(f"{name} {share:.0%}" for name, share in found))


if __name__ == "__main__":
    main()
