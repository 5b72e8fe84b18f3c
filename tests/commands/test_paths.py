import argparse
import sys
from pathlib import Path

import pytest

from mvjax import cli, files
from mvjax.commands import arguments
from mvjax.config import schema, text

# metavars of arguments that are paths
PATHS = {"DIR", "FILE", "ROOT", "RUN", "RUN[@STEP]", "SOURCE", "EXP.py", "PNG"}
# arguments that may be folders of a store
STORED = {
    "mvjax train --out",
    "mvjax train --from",
    "mvjax train --finished",
    "mvjax eval RUN[@STEP]",
    "mvjax export RUN[@STEP]",
    "mvjax export --out",
    "mvjax export --verify",
    "mvjax serve DIR",
    "mvjax talk DIR",
    "mvjax bench DIR",
    "mvjax sweep --out",
    "mvjax report DIR",
    "mvjax report --out",
    "mvjax data ingest --out",
    "mvjax data encode --out",
}


def parsers(parser):
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


def test_every_path_of_the_command_line_is_one_on_this_machine_or_says_so():
    checked, stored = 0, set()
    for parser in parsers(cli._parser()):
        for action in parser._actions:
            if action.metavar not in PATHS:
                continue
            name = f"{parser.prog} {(action.option_strings or [action.metavar])[0]}"
            with pytest.raises(
                argparse.ArgumentError, match=r"hdfs://b/d: expected a path on this"
            ):
                parser._get_value(action, "hdfs://b/d")
            if action.type in (arguments.place, arguments.stored_run_step):
                stored.add(name)
            elif action.type in (arguments.exported, arguments.served):
                stored.add(name)  # which are copied at once
            else:
                with pytest.raises(argparse.ArgumentError, match=r"gs://b/d: expected a path on"):
                    parser._get_value(action, "gs://b/d")
            with pytest.raises(argparse.ArgumentError, match="expected a path, got an empty one"):
                parser._get_value(action, "")
            value = parser._get_value(action, "~/x")
            assert str(value) == str(Path("~/x").expanduser()), f"{parser.prog}: {action.metavar}"
            checked += 1
    assert checked > 25 and stored == STORED


@pytest.mark.parametrize(
    "words",
    [
        "data ingest docci gs://b/d --out x",
        "data validate s3://b",
        "health gs://b/r",
        "eval x --data s3://b/public",
        "dialogues speak gs://b/x.jsonl --out x",
        "quickstart --out gs://b/q",
    ],
)
def test_a_bucket_is_refused_at_once_and_makes_no_folder(words, tmp_path, monkeypatch, capsys):
    experiments = Path(__file__).parents[2] / "experiments"
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.main(words.replace("experiments", str(experiments)).split())
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert "expected a path on this machine" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_a_path_and_what_is_none():
    for path in ("a/b", "/a:b/c", "C:/records", "a:b", "x/gs:/y"):
        assert files.local(path) == Path(path)
    for location in ("hdfs://b", "https://h/x", "gs:/b/d", "hf://a/b", "file:///x"):
        with pytest.raises(ValueError, match="mount it as a folder"):
            files.local(location)
    with pytest.raises(ValueError, match="hdfs://b/m: expected a path on this machine"):
        files.resolve("hdfs://b/m")
    run = schema.Config(schema.FrozenFiles("moshi", "siglip"))
    assert text.override(run, ["data.root=gs://b"]).data.root == "gs://b"
    with pytest.raises(ValueError, match="data.root=hdfs://b: .*: expected a path on this machine"):
        text.override(run, ["data.root=hdfs://b"])


@pytest.mark.skipif(sys.platform != "linux", reason="writes into /proc")
def test_what_cannot_be_written_is_told_before_long_work(tmp_path, capsys):
    (tmp_path / "file").touch()
    arguments.check_writable(tmp_path / "new" / "result.json")
    arguments.check_folder(tmp_path / "new" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    for words in (
        f"health runs/a --asr nosuchcommand --out {tmp_path}/x.json",
        f"health runs/a --out {tmp_path}/file/x.json",
        f"train runs/a/config.json --out {tmp_path}/file",
        f"sweep runs/a.py --out {tmp_path}/file/sweep",
    ):
        assert cli.main(words.split()) == 2
        told = capsys.readouterr().err
        assert "there is no such command: nosuchcommand" in told or "/file is a file" in told
    with pytest.raises(ValueError, match="but /proc cannot be written: "):
        arguments.check_writable(Path("/proc/x.json"))


def test_the_list_of_benchmarks_says_what_each_wants(capsys):
    with pytest.raises(SystemExit):
        cli.main(["eval", "--benchmarks"])
    lines = capsys.readouterr().out.splitlines()
    assert "coco: CIDEr; prompts text, blind, shuffled" in lines
    assert "digits: accuracy; prompts text, audio, blind, shuffled" in lines
    assert any(line.startswith("    ROOT/mmlu/data/test/*_test.csv ") for line in lines)
