"""How long does opening a dataset of a million records take, and how much memory? Writes one, and opens it.

    python tools/bench_records.py FOLDER --records 1000000

The records are synthetic: spoken dialogues of 5 s with a transcript, a hundred about each image of 64 x 64
pixels. They are written once. A fresh process opens the dataset; another also reads records, at random and
by id.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

NAME = "synthetic"
READ = 20_000  # records
PARTS = ("write", "open", "read")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the dataset, some GB")
    parser.add_argument("--records", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--part", choices=PARTS, help="only one of the processes")
    args = parser.parse_args()
    if args.part is None:  # each in its own process, so that the peak of one is not the other's
        command = [sys.executable, __file__, str(args.folder), "--records", str(args.records)]
        for part in PARTS:
            subprocess.run([*command, "--part", part], check=True)
    elif args.part == "write":
        write(args.folder / NAME, args.records)
    else:
        read(args.folder / NAME, count=READ if args.part == "read" else 0)


def write(dataset: Path, count: int) -> None:
    import numpy as np

    from mvjax.data import images
    from mvjax.data.records import dataset as dataset_lib

    if dataset_lib.index_path(dataset).is_file():
        return
    rng = np.random.default_rng(0)
    frames, codebooks = 62, 16
    turns = (
        dataset_lib.Turn("user", "what do you see in the picture"),
        dataset_lib.Turn("assistant", "there is a yellow seven at the bottom left"),
    )
    spoken = turns[1].text.split()
    words = tuple(dataset_lib.Word(w, 2 + 0.3 * n, 2.2 + 0.3 * n) for n, w in enumerate(spoken))
    start, before = time.monotonic(), _megabytes()
    with dataset_lib.RecordWriter(
        dataset, dataset_lib.Identity(codec="0" * 64, tokenizer="0" * 64)
    ) as writer:
        for i in range(count):
            if i % 100 == 0:
                image = images.encode_png(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            codes = rng.integers(0, 2048, codebooks * frames, dtype=np.uint16)
            record = dataset_lib.Record(
                f"{NAME}-{i:08d}", ("LOC",), turns, words=words, image=image,
                codes=codes.tobytes(), codebooks=codebooks, seconds=frames * 0.08,
            )  # fmt: skip
            writer.add(record)
    shards = (*writer.index.records, *writer.index.images)
    size = sum(shard.bytes for shard in shards)
    seconds = time.monotonic() - start
    print(
        f"wrote {count} records, {size / 1e9:.2f} GB in {len(shards)} shards, in {seconds:.0f} s; "
        f"peak memory {_megabytes():.0f} MB, {before:.0f} MB of it before the first record"
    )


def read(dataset: Path, *, count: int) -> None:
    from mvjax.data.records import dataset as dataset_lib

    before, start, spent = _megabytes(), time.monotonic(), time.process_time()
    reader = dataset_lib.RecordReader(dataset, expected=None)
    opened = time.monotonic() - start
    reader[0]
    first = time.monotonic() - start
    print(
        f"opened {len(reader)} records in {opened:.3f} s and read the first in {first:.3f} s, "
        f"{time.process_time() - spent:.3f} s of CPU; "
        f"peak memory {_megabytes():.0f} MB, {before:.0f} MB of it before"
    )
    if not count:
        return
    order = random.Random(0).choices(range(len(reader)), k=count)
    start = time.monotonic()
    for i in order:
        reader[i]
    seconds = time.monotonic() - start
    print(f"{count} records at random, with images: {seconds / count * 1e6:.0f} microseconds each")
    ids = [f"{NAME}-{i:08d}" for i in order]
    start = time.monotonic()
    assert all(reader.find(id) == i for id, i in zip(ids, order, strict=True))
    seconds = time.monotonic() - start
    print(f"{count} records by id: {seconds / count * 1e6:.0f} microseconds each")
    print(f"peak memory then {_megabytes():.0f} MB")


def _megabytes() -> float:
    """The largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    main()
