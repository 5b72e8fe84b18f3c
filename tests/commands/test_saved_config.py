"""`mvjax train RUN/config.json`: a saved config in place of an experiment file; and --dry-run --topology."""

import argparse
import dataclasses
import json
import re
from pathlib import Path

import pytest

from mvjax import cli
from mvjax.commands import arguments, training
from mvjax.config import evaluating
from mvjax.digits import records
from mvjax.train import resume

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "experiments" / "digits.py"


def asked(path: Path, *settings: str, pick: str | None = None) -> argparse.Namespace:
    return argparse.Namespace(experiment=path, set=list(settings), pick=pick)


@pytest.fixture
def run(tmp_path):
    """A run folder of the digits with another learning rate."""
    experiment = asked(DIGITS, "optim.learning_rate=0.25")
    resume.write_config(tmp_path / "run", arguments.load_experiment(experiment))
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["config.json", "."])
def test_it_is_the_config_of_the_experiment_to_the_field(run, name):
    saved = arguments.load_experiment(asked(run / name))
    assert saved == arguments.load_experiment(asked(DIGITS, "optim.learning_rate=0.25"))
    assert saved.data.prepare is records.prepare


def test_a_trial_of_a_sweep_and_an_upstream_model_come_back_too(tmp_path):
    for name, pick in (("gate_ablation", "per_head"), ("moshika_vis", "v5p_2x2x4")):
        config = arguments.load_experiment(asked(ROOT / "experiments" / f"{name}.py", pick=pick))
        resume.write_config(tmp_path / name, config)
        assert arguments.load_experiment(asked(tmp_path / name)) == config


def test_what_set_changes_is_told(run, capsys):
    args = asked(run, "train.steps=9000", "data.root=elsewhere")
    changed = arguments.load_experiment(args)
    assert changed.train.steps == 9000 and changed.optim.learning_rate == 0.25
    training._tell_changes(args, changed)
    said = capsys.readouterr().err
    assert f"{run}/config.json: with data.root 'data/digits' -> 'elsewhere', train.steps" in said
    training._tell_changes(asked(run), arguments.load_experiment(asked(run)))
    assert capsys.readouterr().err == f"{run}/config.json: as it was saved\n"


def test_names_of_the_version_before_are_read_with_a_warning(run):
    file = run / "config.json"
    data = json.loads(file.read_text())
    data["train"]["accumulate"] = data["train"].pop("grad_accum_steps")
    file.write_text(json.dumps(data))
    with pytest.warns(FutureWarning, match="train.accumulate is now train.grad_accum_steps"):
        saved = arguments.load_experiment(asked(file))
    assert saved == arguments.load_experiment(asked(DIGITS, "optim.learning_rate=0.25"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "RUN/config.json", "--pick", "a", "--out", "x"], "--pick a: RUN/config.json is the"),
        (["train", "OVER", "--out", "x"], "OVER: expected .* found no config.json in it; did you mean RUN"),
        (["train", "OVER/other.json", "--out", "x"], "other.json: .* saved config .* unknown field 'a'"),
        (["train", "OVER/none.json", "--out", "x"], "none.json: expected an experiment file"),
        (["plan", "OVER", "--topology", "v5e:2x2"], "OVER: .* with --serve, that of an export, found no"),
        (["plan", "OVER", "--topology", "l4:1", "--serve"], "OVER: .* with --serve, that of an export"),
        (["sweep", "RUN", "--out", "x"], "RUN: is the config of one run, which `mvjax train` takes"),
        (["train", "RUN", "--out", "x", "--topology", "v5e:2x2"], "--topology: expected --dry-run with it"),
    ],
)  # fmt: skip
def test_what_is_none_is_refused_with_the_remedy(run, capsys, words, message):
    (run.parent / "other.json").write_text('{"a": 1}')
    names = {"RUN": str(run), "OVER": str(run.parent)}
    for name, path in names.items():
        words = [word.replace(name, path) for word in words]
        message = message.replace(name, path)
    assert cli.main(words) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_dry_run_for_other_devices_checks_files_and_records_and_plans_the_step(
    run, capsys, tmp_path
):
    words = ["--set", f"data.root={tmp_path}/records", "--dry-run", "--out", f"{tmp_path}/new"]
    status = cli.main(["train", str(run), *words, "--topology", "h100:2", "--topology", "l4:1"])
    said = capsys.readouterr().out
    files, plans = said.split("\n\n", 1)
    assert status == 0 and "complete, of the right shapes" in files and "to be made" in files
    assert "mesh:" not in files and "memory:" not in files  # of the devices here
    assert (
        "h100:2: 2 chips, data=2" in plans and "of 73.6: fits" in plans and "l4:1: 1 chip" in plans
    )
    assert not (tmp_path / "new").exists() and not (tmp_path / "records").exists()


def test_a_dry_run_for_devices_that_do_not_divide_the_mesh_stops_first(run, capsys):
    words = ["--dry-run", "--out", f"{run}2", "--topology", "h100:2", "--set", "mesh.fsdp=3"]
    assert cli.main(["train", str(run), *words]) == 2
    out = capsys.readouterr()
    assert "h100:2: mesh: expected sizes" in out.err and "--set train.remat=none" in out.err
    assert "complete" not in out.out


def test_an_evaluation_that_a_run_is_too_short_for_is_told(capsys):
    config = arguments.load_experiment(asked(DIGITS, "train.steps=30"))
    for every, told in (
        (30, ""),
        (1000, "evals: digits is never asked: every 1000 steps, of 30\n"),
    ):
        evals = (evaluating.EvalConfig("digits", every=every),)
        training._tell_late(dataclasses.replace(config, evals=evals))
        assert capsys.readouterr().err == told
