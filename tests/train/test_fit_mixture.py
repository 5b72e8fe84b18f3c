"""The mixture of a run: its history of weights and its list of bad records lie in the run folder."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from mvjax import run_folder
from mvjax.config import schema
from mvjax.data import examples, mixing, mixture
from mvjax.data.records import shards
from mvjax.train import begin, resume, sharding

sys.path.append(str(Path(__file__).parents[1] / "data"))
import toy_records


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setitem(shards._WRITER, "compressed", shards._WRITER["plain"])
    codec = tmp_path / "codec"
    codec.write_text("a codec")
    return toy_records.make_config(tmp_path / "records", codec)


def reweighted(run, weight):
    speechless = (schema.Source("text", weight), schema.Source("visual", 1.0))
    return dataclasses.replace(run, data=dataclasses.replace(run.data, speechless=speechless))


def names(data, steps):
    return [name for step in steps for name in data.ids(step)["speechless"]]


def test_weights_that_change_keep_every_dataset_in_order(run, tmp_path):
    mesh = sharding.make_mesh(schema.MeshConfig(), None)
    first = begin.mixture_of(run, tmp_path, mesh, mixing.start(run.data))
    mixing.write(tmp_path / run_folder.MIXTURE, mixing.start(run.data))
    other = reweighted(run, 1.0)
    history, told = mixing.resume(tmp_path / run_folder.MIXTURE, other.data, 6)
    assert told == "weights change at step 6: speechless text 3, visual 1 -> text 1, visual 1"
    second = begin.mixture_of(other, tmp_path, mesh, history)
    assert names(second, range(6)) == names(first, range(6))
    later = names(second, range(6, 16))
    assert sum(name.startswith("visual/") for name in later) == len(later) // 2


def test_other_records_are_refused(run, tmp_path):
    mixture.ensure_records(run.data)
    before = mixture.records_identity(run.data)
    assert sorted(before) == ["talk", "text", "visual"]
    resume.check_records(before, before | {"new": "0"}, folder=tmp_path)
    index = tmp_path / "records" / "text.json"
    index.write_bytes(index.read_bytes().replace(b'"count": 30', b'"count": 29', 1))
    now = mixture.records_identity(run.data)
    with pytest.raises(ValueError, match=r"trained on other records of text: .*made anew"):
        resume.check_records(before, now, folder=tmp_path)


def test_bad_records_are_listed_in_the_run_folder(run, tmp_path):
    mesh = sharding.make_mesh(schema.MeshConfig(), None)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, bad_record_budget=1))
    data = begin.mixture_of(run, tmp_path, mesh, mixing.start(run.data))
    (path,) = shards.paths(examples.record_path(run.data, "text"), 1)
    content = bytearray(path.read_bytes())
    content[content.index(b"text-7")] ^= 255
    path.write_bytes(content)
    assert {len(data[step].speechless.codes) for step in range(6)} == {12}
    (line,) = (tmp_path / run_folder.BAD_RECORDS).read_text().splitlines()
    assert json.loads(line)["record"] == "text[7]"
