import subprocess
import sys
from pathlib import Path

import pytest

from mvjax import cli
from mvjax.commands import evaluate
from mvjax.eval import benchmarks

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "experiments" / "digits.py")
COMMANDS = ("quickstart", "train", "plan", "eval", "export", "data", "dialogues", "show")


def run(capsys, *argv: str) -> tuple[int, str, str]:
    status = cli.main(argv)
    out = capsys.readouterr()
    return status, out.out, out.err


def help_of(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main([*argv, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_command(capsys):
    text = help_of(capsys)
    assert all(f"\n    {name}" in text for name in COMMANDS)


@pytest.mark.parametrize(
    "argv",
    [[name] for name in COMMANDS if name not in ("data", "dialogues")]
    + [
        ["data", action]
        for action in ("digits", "ingest", "align", "encode", "validate", "stats", "show")
    ]
    + [["dialogues", step] for step in ("write", "speak")],
)
def test_each_command_explains_itself_with_an_example_that_parses(capsys, argv):
    text = help_of(capsys, *argv)
    example = text.split("example:\n")[1].strip()
    name, *words = example.split()
    assert name == "mvjax" and words[: len(argv)] == argv
    assert cli._parser().parse_args(words).run


def test_help_and_import_touch_neither_jax_nor_torch():
    code = (
        "import sys, mvjax, mvjax.cli\n"
        "try: mvjax.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('jax', 'torch', 'mlx', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_show_prints_config_and_table(capsys):
    status, out, _ = run(capsys, "show", DIGITS, "--set", "mesh.fsdp=2")
    assert status == 0
    assert "\nmesh.fsdp = 2\n" in out
    (line,) = [line for line in out.splitlines() if line.startswith("xa/q/kernel")]
    assert "yes" in line and "(fsdp,tensor,-)" in line
    assert out.rstrip().endswith("data=1 x fsdp=2 x tensor=1")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["show", "none.py"], "none.py: expected an experiment file"),
        (["show", DIGITS, "--set", "optim.learning_rat=1"], "did you mean 'learning_rate'"),
        (["show", DIGITS, "--set", "mesh.fsdp=5"], "not divisible by mesh axis fsdp=5"),
        (["train", DIGITS, "--set", "frozen.moshi=none.safetensors", "--out", "."], "no such file"),
        (["eval", "tests"], "tests: expected a run folder"),
        (["eval", "tests", "--benchmark", "digit"], "unknown 'digit'; did you mean 'digits'?"),
        (["export", "none", "--to", "torch", "--out", "x"], "none: expected a run folder"),
        (
            ["export", "none", "--to", "torch", "--out", "x", "--frames", "9"],
            "--frames: expected 100 or more, got 9",
        ),
        (
            ["export", "none", "--target", "candle", "--quantize", "q8_0", "--out", "x"],
            "none: expected a run folder",
        ),
    ],
)
def test_user_errors_are_one_message_and_status_2(capsys, monkeypatch, argv, message):
    monkeypatch.chdir(ROOT)
    status, out, err = run(capsys, *argv)
    assert status == 2 and out == ""
    assert err.startswith(f"mvjax {argv[0]}: ") and message in err
    assert "Traceback" not in err


def test_the_prompts_of_eval_are_the_modes_of_a_benchmark():
    assert evaluate.PROMPTS == benchmarks.MODES


def test_debug_shows_where(monkeypatch):
    monkeypatch.setenv("MVJAX_DEBUG", "1")
    with pytest.raises(ValueError, match="expected an experiment file"):
        cli.main(["show", "none.py"])


def test_quickstart_passes_its_arguments(monkeypatch):
    quickstart = pytest.importorskip("mvjax.digits.quickstart")
    seen = {}
    monkeypatch.setattr(
        quickstart, "run", lambda out, *, short: seen.update(out=out, short=short) or 3
    )
    assert cli.main(["quickstart", "--out", "somewhere", "--short"]) == 3
    assert seen == {"out": Path("somewhere"), "short": True}


def test_export_lists_its_targets_without_a_run(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", "--list"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "gate: conditional sigmoid (release)" in out and "with --xa-start" in out


def test_export_passes_its_arguments_and_fails_with_its_certificate(capsys, monkeypatch, tmp_path):
    from mvjax.config import schema
    from mvjax.export import certificate
    from mvjax.export import folder as export_folder
    from mvjax.train import load

    run_config = schema.Config(schema.FrozenFiles("", "", "", ""))
    seen = {}

    def certify(params, config, folder, target, *, pixels, user_codes, **how):
        seen.update(target=target, shapes=(pixels.shape, user_codes.shape), certified=how)
        return {"verdict": seen.get("verdict", "lossy")}

    trained = load.TrainedRun(run_config, {"a": 1}, 600)
    monkeypatch.setattr(load, "trained", lambda folder: trained)
    monkeypatch.setattr(export_folder, "export", lambda *a, **kw: seen.update(args=a, exported=kw))
    monkeypatch.setattr(certificate, "certify", certify)
    monkeypatch.setattr(certificate, "summary", lambda found: f"{found['verdict']}!")
    words = ["export", str(tmp_path), "--to", "mlx", "--quantize", "q4", "--out", "o"]
    status, out, _ = run(capsys, *words, "--frames", "150")
    assert (status, out) == (0, "o: lossy!\n")
    how = {"dtype": None, "quantization": "q4"}
    assert seen["args"] == ({"a": 1}, run_config, "mlx", Path("o"))
    assert seen["exported"].pop("results").step == 600
    assert seen["exported"] == seen["certified"] == how
    assert seen["shapes"] == ((1, 448, 448, 3), (8, 150))
    seen["verdict"] = "fail"
    assert run(capsys, *words)[0] == 1
