"""Damaged dataset files: what is whole is read, the rest is listed or refused; nothing crashes or hangs."""

import fuzzing
import pytest
import released
import released_spoken

from mvjax.data.ingest import catalog, items

COUNTS = [fuzzing.SHORT, pytest.param(fuzzing.LONG, marks=pytest.mark.long)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("coco", "dataset_coco.json"),
        ("docci", "docci_descriptions.jsonlines"),
        ("rendered-text", "000000.tar"),
        ("pixmo-cap", "data/train-00000-of-00004.parquet"),
        ("moshi-finetune", "data_stereo/a.json"),
    ],
)
def test_damaged_files(tmp_path, name, file, count):
    dataset = catalog.DATASETS[name]
    getattr(released_spoken if dataset.spoken else released, name.replace("-", "_"))(tmp_path)
    path = tmp_path / file
    whole = path.read_bytes()
    left_out = read = 0

    def check(data):
        nonlocal left_out, read
        path.write_bytes(data)
        skips = items.SkippedItems()
        options = {"split": dataset.splits[0], "images": [tmp_path]}
        read += len(list(catalog.reader(name)(tmp_path, skips=skips, **options)))
        left_out += skips.counts.total()

    refused = fuzzing.fuzz([whole], check, count)
    assert read > count // 8 and refused + left_out > count // 2
