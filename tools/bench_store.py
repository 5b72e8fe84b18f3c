"""Measures reading records from an object store: through the cache of copies beside local disk, and by range.

    gcp-storage-emulator start --port 9023 --in-memory --default-bucket bench &    # or a store that is one
    STORAGE_EMULATOR_HOST=http://localhost:9023 python tools/bench_store.py FOLDER gs://bench/records

Records of the paper's shape (as bench_data.py) are made below FOLDER and sent. Batches of the mixture are
then built from local disk and from the store in turns, each time by a new reader, after the first batches
have copied what is needed. By range is one request for each record and each image, of its size and at a
random place of its shard: what a reader without copies would pay, whatever it made of the bytes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import bench_data  # beside this file
import numpy as np

from mvjax import files
from mvjax.config import schema
from mvjax.data import examples, mixture
from mvjax.data.records import dataset, publishing, shards
from mvjax.stores import objects, places

READS = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("url", help="a folder of a store; what is missing is sent")
    parser.add_argument("--steps", type=int, default=4, help="batches a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each (%(default)s)")
    args = parser.parse_args()
    local = bench_data.paper_shape(args.folder / "paper")
    remote = bench_data.with_data(local, root=args.url)
    send(local, args.url)
    os.environ[places.CACHE] = tempfile.mkdtemp(dir=args.folder)
    size = sum(one.size for one in objects.below(args.url).values())
    began = time.perf_counter()
    batches(remote, steps=READS // 4)
    seconds = time.perf_counter() - began
    print(f"cold: {READS // 4} batches in {seconds:.1f} s, with copies of {size / 1e6:.0f} MB")
    rates: dict[str, list[tuple[float, float]]] = {"local disk": [], "store, by copies": []}
    for _ in range(args.rounds):
        for name, run in zip(rates, (local, remote), strict=True):
            rates[name].append(batches(run, steps=args.steps))
    for name, measured in rates.items():
        wall, cpu = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{name}: {1 / wall:.3f} batches/s, {cpu:.3f} CPU seconds a batch")
    a, b = (statistics.median(x for x, _ in measured) for measured in rates.values())
    c, d = (statistics.median(x for _, x in measured) for measured in rates.values())
    print(f"the store's throughput is {a / b:.1%} of local disk's by the clock, {c / d:.1%} by CPU")
    for name, run in (("local disk", local), ("store, by copies", remote)):
        print(f"{name}: {entries(run):.2f} ms a record with its image")
    print(f"store, by range: {ranges(remote):.2f} ms a record with its image")


def send(run: schema.Config, url: str) -> None:
    if any(not objects.stat(f"{url}/{name}.json") for name in names(run)):
        with publishing.published(files.output(url)) as root:
            for path in Path(run.data.root).iterdir():
                if path.is_file():
                    (root / path.name).write_bytes(path.read_bytes())


def names(run: schema.Config) -> list[str]:
    return sorted({source.name for source in (*run.data.speech, *run.data.speechless)})


def batches(run: schema.Config, *, steps: int) -> tuple[float, float]:
    """Returns seconds and CPU seconds a batch, of steps after the first one."""
    data = mixture.batches(run)
    data[0]
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(1, 1 + steps):
        data[step]
    return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps


def entries(run: schema.Config) -> float:
    """Milliseconds that reading a random record takes, without what is made of it."""
    reader = dataset.RecordReader(examples.record_path(run.data, names(run)[0]), expected=None)
    chosen = np.random.default_rng(0).integers(0, len(reader), READS).tolist()
    reader[0]
    began = time.perf_counter()
    for number in chosen:
        reader[number]
    return (time.perf_counter() - began) / READS * 1000


def ranges(run: schema.Config) -> float:
    """Milliseconds of two requests, of the mean size of a record and of an image."""
    path = examples.record_path(run.data, names(run)[0])
    index = dataset.RecordReader(path, expected=None).index
    wanted = []
    for stem, parts in ((path, index.records), (dataset.index_lib.images_stem(path), index.images)):
        url = places.url(shards.paths(stem, len(parts))[0])
        wanted.append((str(url), parts[0].bytes, parts[0].bytes // parts[0].count))
    rng, began = np.random.default_rng(0), time.perf_counter()
    for _ in range(READS):
        for url, total, size in wanted:
            start = int(rng.integers(0, total - size))
            objects.read_range(url, start, start + size)
    return (time.perf_counter() - began) / READS * 1000


if __name__ == "__main__":
    main()
