"""RUN@STEP on the command line: every command that reads a trained run takes it in one way."""

import json

import pytest

from mvjax import cli, run_folder
from mvjax.digits import recipe
from mvjax.eval import model as eval_model
from mvjax.eval import runner
from mvjax.train import load


class Stop(Exception):
    """Ends a command where it would read the run."""


@pytest.mark.parametrize("words", ["eval RUN", "export RUN --target torch --out x"])
@pytest.mark.parametrize(("step", "expected"), [("", None), ("@300", 300)])
def test_commands_read_the_checkpoint_of_the_step(words, step, expected, monkeypatch, tmp_path):
    def trained(*arguments, mesh=None):
        raise Stop(*arguments)

    monkeypatch.setattr(load, "trained", trained)
    run = tmp_path / "run"
    with pytest.raises(Stop) as stopped:
        cli.main(words.replace("RUN", f"{run}{step}").split())
    assert stopped.value.args == (run, expected)


def test_an_older_checkpoints_results_do_not_replace_those_of_the_newest(monkeypatch, tmp_path):
    def trained(folder, step, mesh):
        return load.TrainedRun(recipe.digits(), {}, step or 400, identity=f"checkpoint of {step}")

    monkeypatch.setattr(load, "trained", trained)
    monkeypatch.setattr(eval_model, "load", lambda *arguments: None)
    table = [{"kind": "digit", "n": 6, "text": 0.5}]
    found = runner.Evaluation([], {}, table, {"text": (0.1, 0.9)})
    monkeypatch.setattr(runner, "evaluate", lambda *arguments, **how: found)
    for run in (tmp_path, f"{tmp_path}@300"):
        assert cli.main(["eval", str(run), "--prompt", "text", "--limit", "6"]) == 0
    steps = {
        path.name: json.loads(path.read_text())["step"]
        for path in (tmp_path / run_folder.EVAL).glob("*.json")
    }
    assert steps == {"digits.json": 400, "digits@300.json": 300}


def test_a_step_that_is_no_number_is_a_misuse(capsys):
    with pytest.raises(SystemExit):
        cli.main(["eval", "runs/a@last"])
    assert "expected RUN@STEP, such as runs/digits@300" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--limit 0", "--limit: expected a number of at least 1, got 0"),
        ("--batch-size -1 --tail -2", "--batch-size: expected a number of at least 1, got -1"),
        ("--template please", "--template: expected a text with {prompt} in it and no other"),
    ],
)
def test_counts_and_templates_that_make_no_sense_are_refused(capsys, words, message):
    assert cli.main(["eval", "runs/a", *words.split()]) == 2
    assert message in capsys.readouterr().err
