"""Commands that read and write folders of a store, beside the same in a folder."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import released
import sweeps
import toy_records

from mvjax import cli, files
from mvjax.commands import arguments
from mvjax.config import study as study_lib
from mvjax.data.ingest import moshi_finetune
from mvjax.data.records import dataset, publishing
from mvjax.data.speech import spoken
from mvjax.report import comparable, numbers, outcomes
from mvjax.stores import objects


def sent(folder, url):
    for path in folder.rglob("*"):
        if path.is_file():
            objects.upload(path, f"{url}/{path.relative_to(folder).as_posix()}")


def test_ingest(s3, tmp_path, capsys):
    released.tallyqa(tmp_path / "tallyqa")
    words = ["data", "ingest", "tallyqa", str(tmp_path / "tallyqa"), "--out"]
    assert cli.main([*words, str(tmp_path / "here")]) == 0
    expected = capsys.readouterr().out
    assert cli.main([*words, s3]) == 0
    assert capsys.readouterr().out == expected.replace(str(tmp_path / "here"), s3)
    names = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert objects.below(s3).keys() == names.keys()
    for name, content in names.items():
        assert objects.read(f"{s3}/{name}") == content
    reader = dataset.RecordReader(files.local(s3) / "tallyqa-train", expected=None)
    assert [record.image is not None for record in reader]


@pytest.mark.slow
def test_report(s3, tmp_path, capsys):
    study = study_lib.Study("Gates", "which?", baseline="none")
    folder = sweeps.write(tmp_path / "gates", study, {"none": {"text": 0.4}, "gate": {"text": 0.8}})
    sent(folder, f"{s3}/gates")
    objects.write(f"{s3}/gates/none/seed-0/checkpoints/00000004/adapters/d/x", bytes(1000))
    assert cli.main(["report", f"{s3}/gates"]) == 0
    assert capsys.readouterr().out == f"{s3}/gates/report/report.html\n"
    names = objects.below(f"{s3}/gates/report").keys()
    assert {"report.html", "report.md", "results.csv"} < names and any(".png" in n for n in names)
    read = comparable.keep(outcomes.read([folder]))
    expected = numbers.as_json(read, numbers.scores(read))
    assert objects.read(f"{s3}/gates/report/results.json").decode() == expected


@pytest.mark.slow
def test_encode_and_features(s3, tmp_path, capsys, monkeypatch):
    """The features are made beside records that lie at the store; a second time, nothing is made."""
    rng = np.random.default_rng(0)
    noise = (0.2 * rng.standard_normal((2, 24000))).astype(np.float32)
    turns, words = (dataset.Turn("assistant", "hi"),), (dataset.Word("hi", 0.0, 0.5),)
    spoken_one = spoken.Spoken(id="talk-0", audio=noise, words=words, turns=turns)
    moshi_finetune.write(tmp_path / "speech", [spoken_one])
    experiment = Path(__file__).parents[2] / "experiments" / "digits.py"
    encode = ["data", "encode", str(experiment), str(tmp_path / "speech"), "--workers", "0"]
    encode += ["--name", "chat", "--out"]
    assert cli.main([*encode, s3]) == 0
    assert f"{s3}/chat: 1 record" in capsys.readouterr().out
    (record,) = dataset.RecordReader(files.local(s3) / "chat", expected=None)
    assert record.id == "talk-0" and not any("codes" in name for name in objects.below(s3))
    assert cli.main([*encode, s3, "--beam=--runner=DirectRunner"]) == 2
    assert f"--beam with --out {s3}: expected a folder that all" in capsys.readouterr().err

    pictured = [toy_records.record(i, "x", spoken=False) for i in range(3)]
    with publishing.published(files.output(s3)) as root:
        dataset.write(root / "x", pictured, dataset.Identity())
    settings = {"data.root": s3, "data.speech_rows": 0, "data.p_concat": 0.0}
    features = ["data", "features", str(experiment)]
    features += [w for k, v in settings.items() for w in ("--set", f"{k}={v}")]
    features += [
        "--set",
        "data.speech=[]",
        "--set",
        "data.small_talk=[]",
        "--set",
        'data.speechless=[{"name": "x", "weight": 1}]',
    ]
    assert cli.main(features) == 0 and "x: 3 images" in capsys.readouterr().out
    assert {"x.features.json", "x.json", "x.ids"} < objects.below(s3).keys()
    assert cli.main(features) == 0 and "x: up to date" in capsys.readouterr().out


def test_scripts_ask_whether_a_run_is_finished(s3, tmp_path, capsys):
    def status(run) -> int:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["train", "--finished", str(run)])
        return stopped.value.code

    assert status(f"{s3}/run") == status(tmp_path / "run") == 1
    for number, finished in enumerate(("false", "true")):
        objects.write(f"{s3}/run/summary.json", f'{{"finished": {finished}}}'.encode())
        assert status(f"{s3}/run") == 1 - number
    assert capsys.readouterr().err == ""
    objects.write(f"{s3}/run/summary.json", b"?")
    assert status(f"{s3}/run") == 2 and f"--finished {s3}/run" in capsys.readouterr().err


def test_what_cannot_be_sent_is_kept(s3, tmp_path, capsys, monkeypatch):
    def refuse(path, place):
        raise PermissionError(f"{place}: expected the right to write it")

    released.tallyqa(tmp_path / "tallyqa")
    words = ["data", "ingest", "tallyqa", str(tmp_path / "tallyqa"), "--out", s3]
    monkeypatch.setattr(objects, "upload", refuse)
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert f"mvjax data: {s3}/" in told and objects.below(s3) == {}
    (kept,) = (tmp_path / "cache" / "unsent").glob("*/*")
    assert f"is kept in {kept}: copy it to {s3}, and last tallyqa-train.json" in told
    assert (kept / "tallyqa-train.json").exists()
    assert not list((tmp_path / "cache" / "work").glob("*/s3/*/*"))
    monkeypatch.setattr(objects, "write", lambda place, content: refuse(None, place))
    assert cli.main(words) == 2  # at once
    assert "tallyqa" not in capsys.readouterr().err and len(list(kept.parent.iterdir())) == 1


def test_an_export_of_a_store_is_verified(s3, tmp_path, capsys):
    """Its copy is what there is at the store, also after that changed."""
    for name in ("certificate.json", "README.md"):
        objects.write(f"{s3}/x/{name}", b"{}")
    for _ in range(2):
        assert cli.main(["export", "--verify", f"{s3}/x"]) == 2
        assert f"{s3}/x/certificate.json: holds no hashes of all files" in capsys.readouterr().err
    objects.remove([f"{s3}/x/README.md"])
    with pytest.raises(FileNotFoundError):
        arguments.exported(f"{s3}/nothing")
    assert [path.name for path in arguments.exported(f"{s3}/x").iterdir()] == ["certificate.json"]
    objects.write(f"{s3}/x/config.txt", b"")
    with pytest.raises(argparse.ArgumentTypeError, match="expected an export, got a run folder"):
        arguments.served(f"{s3}/x")


@pytest.mark.parametrize("words", ["train x.json --out s3://b//x", "report gs://"])
def test_what_is_no_location_is_told_at_once(words, capsys):
    with pytest.raises(SystemExit):
        cli.main(words.split())
    assert "expected gs://BUCKET/NAME or s3://BUCKET/NAME" in capsys.readouterr().err
