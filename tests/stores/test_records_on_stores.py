import dataclasses
import threading

import numpy as np
import pytest
import toy_records

from mvjax import files
from mvjax.data import mixture
from mvjax.data.records import dataset, publishing
from mvjax.digits import frozen_models
from mvjax.stores import objects, staging


@pytest.fixture
def config(tmp_path):
    def at(root):
        return toy_records.make_config(root, frozen_models.FROZEN.codec)

    return at


def test_a_mixture_of_a_store_is_that_of_a_folder(s3, config, tmp_path):
    """The first use makes the records; another host, with a cache of its own, reads the same."""
    here, there = config(tmp_path / "records"), config(f"{s3}/records")
    wanted, got = mixture.batches(here), mixture.batches(there)
    for step in (0, 7):
        toy_records.assert_equal(got[step], wanted[step])
    made = dataclasses.replace(there.data, prepare=None)
    assert mixture.records_identity(made) == mixture.records_identity(here.data)
    names = {path.name for path in (tmp_path / "records").iterdir()} - {"lock"}
    assert objects.below(f"{s3}/records").keys() == names
    nothing = dataclasses.replace(made, root=f"{s3}/elsewhere")
    with pytest.raises(FileNotFoundError, match="expected records that are not there"):
        mixture.ensure_records(nothing)


def records(*ids):
    return [toy_records.record(i, "x", spoken=False) for i in ids]


def publish(url, ids, **options):
    with publishing.published(files.output(url)) as root:
        dataset.write(root / "x", records(*ids), dataset.Identity(), **options)


def test_a_dataset_is_replaced_whole_and_never_half_read(s3, monkeypatch):
    publish(s3, range(6), shard_bytes=1)  # a record a shard
    old = dataset.RecordReader(files.local(s3) / "x", expected=None)
    assert len(objects.below(s3)) == 2 + 12 and old[0].id == "x-0"
    seen = []
    upload = objects.upload

    def noted(path, place):
        seen.append("x.json" in objects.below(s3))
        return upload(path, place)

    monkeypatch.setattr(objects, "upload", noted)
    publish(s3, range(10, 14), shard_bytes=1)
    assert not any(seen)  # the old index went before a shard was replaced
    assert len(objects.below(s3)) == 2 + 8
    new = dataset.RecordReader(files.local(s3) / "x", expected=None)
    assert [record.id for record in new] == [f"x-{i}" for i in range(10, 14)]
    with pytest.raises((ValueError, OSError)):  # its shards are gone
        old[5]


def test_a_failure_publishes_nothing_but_the_list_of_what_was_skipped(s3):
    publish(s3, range(3))
    before = objects.below(s3)
    with pytest.raises(KeyError), publishing.published(files.output(s3)) as root:
        dataset.write(root / "x", records(9), dataset.Identity())
        (root / "x.bad_records.jsonl").write_text("{}\n")
        raise KeyError
    after = objects.below(s3)
    assert after.pop("x.bad_records.jsonl").size == 3 and after == before


def test_a_damaged_shard_is_fetched_once_and_named(s3, config, fetched):
    publish(s3, range(3))
    shard = f"{s3}/x-00000-of-00001.array_record"
    objects.write(shard, objects.read(shard)[:-1] + b"?")
    reader = dataset.RecordReader(files.local(s3) / "x", expected=None)
    for number in range(3):
        with pytest.raises(ValueError, match=f"{shard}: expected SHA-256"):
            reader[number]
    assert fetched.count(shard) == 1


def test_threads_share_a_copy(s3, fetched):
    objects.write(f"{s3}/x", np.random.default_rng(0).bytes(3_000_000))
    path, found = files.local(f"{s3}/x"), []
    threads = [
        threading.Thread(target=lambda: found.append(staging.here(path).stat().st_size))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3_000_000] * 4 and len(fetched) == 1
