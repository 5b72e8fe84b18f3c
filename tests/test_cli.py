import errno
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import exported
import pytest

import mvjax
from mvjax import cli
from mvjax.commands import completion, evaluate
from mvjax.eval import benchmarks
from mvjax.export import certificate

ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "experiments" / "digits.py")
COMMANDS = (
    "quickstart", "train", "plan", "eval", "sweep", "export", "certify", "data", "dialogues", "show",
    "completion",
)  # fmt: skip
GROUPS = ("data", "dialogues")


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
    [[name] for name in COMMANDS]
    + [
        ["data", action]
        for action in ("digits", "ingest", "align", "encode", "validate", "stats", "show")
    ]
    + [["dialogues", step] for step in ("write", "speak", "records")],
)
def test_each_command_explains_itself_with_an_example_that_parses(capsys, argv):
    text = help_of(capsys, *argv)
    example = text.split("example:\n")[1].strip()
    name, *words = example.split()
    assert name == "mvjax" and words[: len(argv)] == argv
    assert cli._parser().parse_args(words).run


@pytest.mark.parametrize("argv", [(), *((name,) for name in GROUPS)])
def test_a_command_that_only_has_subcommands_prints_its_help(capsys, argv):
    text = help_of(capsys, *argv)
    assert run(capsys, *argv) == (0, text, "")


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"mvjax {mvjax.__version__}\n")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == mvjax.__version__


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "mvjax: error: argument COMMAND: unknown 'trian'; did you mean 'train'?"),
        (["data", "shwo"], "mvjax data: error: argument ACTION: unknown 'shwo'; did you mean 'show'?"),
        (["zzz"], "unknown 'zzz'; expected one of: quickstart, train, show, plan"),
        (["export", "x", "--target", "tourch"], "--target/--to: unknown 'tourch'; did you mean 'torch'?"),
        (["eval", "x", "--promt=text"], "unexpected --promt=text; --promt: did you mean '--prompt'?"),
        (["train", "x", "--otu", "y"], "arguments are required: --out; --otu: did you mean '--out'?"),
        (["data", "stats", "x", "--jsn"], "unexpected --jsn; --jsn: did you mean '--json'?"),
        (["show", "a.py", "b.py"], "mvjax show: error: unexpected b.py\n"),
    ],
)  # fmt: skip
def test_a_misspelled_word_is_told_what_it_meant(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_an_option_may_be_abbreviated_and_its_value_begin_with_a_dash(capsys):
    args = cli._parser().parse_args(["eval", "x", "--lim=3", "--tail", "-1"])
    assert (args.limit, args.tail) == (3, -1)


@pytest.mark.parametrize("seed", ["-1", "1.5", "", "nan"])
@pytest.mark.parametrize(
    "words", [["talk", "x", "--out", "y.wav"], ["eval", "x"], ["data", "digits", "--out", "d"]]
)
def test_a_seed_is_a_number_from_0_on(capsys, words, seed):
    with pytest.raises(SystemExit):
        cli._parser().parse_args([*words, "--seed", seed])
    assert f"--seed: expected a whole number of 0 or more, got {seed!r}" in capsys.readouterr().err


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_knows_every_command_and_option(capsys, shell):
    status, out, _ = run(capsys, "completion", shell)
    assert status == 0
    assert all(word in out for word in (*COMMANDS, "validate", "--quantize", "q8_0"))


def test_a_shell_without_completion_is_not_taken_for_another(capsys):
    with pytest.raises(SystemExit):
        cli.main(["completion", "fish"])
    assert "unknown 'fish'; expected one of: bash, zsh, tcsh" in capsys.readouterr().err


def test_bash_completes_commands_choices_and_files(capsys, tmp_path):
    (tmp_path / "script").write_text(run(capsys, "completion", "bash")[1])
    (tmp_path / "digits.py").touch()

    def completed(*words):
        code = 'source ./script; COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _shtab_mvjax'
        found = subprocess.run(
            ["bash", "-c", f'{code}; echo "${{COMPREPLY[@]}}"', "-", "mvjax", *words],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return found.stdout.split()

    assert completed("da") == ["data"]
    assert completed("data", "sh") == ["show"]
    assert completed("export", "--target", "") == ["torch", "mlx", "candle"]
    assert completed("train", "dig") == ["digits.py"]


@pytest.mark.parametrize("argv", [["--help"], ["export", "--list"]])
def test_a_closed_pipe_is_no_error(argv):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mvjax", *argv]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
def test_a_full_disk_behind_standard_output_is_one():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "mvjax", "--version"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and "No space left on device" in done.stderr


def test_another_pipe_that_breaks_is_one(capfd, monkeypatch):
    def fail(args):
        raise BrokenPipeError(errno.EPIPE, "of a worker")

    monkeypatch.setattr(evaluate, "evaluate", fail)
    assert cli.main(["eval", "x"]) == 2
    assert "of a worker" in capfd.readouterr().err


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


@pytest.mark.parametrize("command", ["export", "certify"])
def test_the_fewest_frames_are_in_the_help(capsys, command):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert f"compare, {certificate.MIN_FRAMES} or more;" in " ".join(
        capsys.readouterr().out.split()
    )


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
    from mvjax.export import certificate, verdict
    from mvjax.export import folder as export_folder
    from mvjax.train import load

    run_config = schema.Config(schema.FrozenFiles("", "", "", ""))
    seen = {}

    def certify(params, config, folder, target, *, pixels, user_codes, **how):
        seen.update(target=target, shapes=(pixels.shape, user_codes.shape), certified=how)
        return {"verdict": seen.get("verdict", "lossy")}

    trained = load.TrainedRun(run_config, {"a": 1}, 600)
    monkeypatch.setattr(load, "trained", lambda folder, step: trained)
    monkeypatch.setattr(export_folder, "export", lambda *a, **kw: seen.update(args=a, exported=kw))
    monkeypatch.setattr(certificate, "certify", certify)
    monkeypatch.setattr(verdict, "summary", lambda found, command: f"{found['verdict']}! {command}")
    words = ["export", str(tmp_path), "--to", "mlx", "--quantize", "q4", "--out", "o"]
    status, out, _ = run(capsys, *words, "--frames", "150")
    assert (status, out) == (0, f"o: lossy! mvjax certify o --run {tmp_path}@600\n")
    how = {"dtype": None, "quantization": "q4"}
    assert seen["args"] == ({"a": 1}, run_config, "mlx", Path("o"))
    assert seen["exported"].pop("results").step == 600
    assert seen["exported"] == seen["certified"] == how
    assert seen["shapes"] == ((1, 448, 448, 3), (8, 150))
    for given, status in (("fail", 1), ("not run", 0)):
        seen["verdict"] = given
        assert run(capsys, *words)[0] == status
    assert seen["shapes"][1] == (8, 120)  # the released window is too long to talk past


def test_export_verifies_a_folder_without_a_run(capsys, tmp_path):
    from mvjax.export import verify

    (tmp_path / "model.safetensors").write_text("weights")
    certificate = exported.CERTIFICATE | {"target": "mlx", "files": verify.hashes(tmp_path)}
    assert run(capsys, "export", "--verify", str(tmp_path))[0] == 2  # no certificate
    (tmp_path / "certificate.json").write_text(json.dumps(certificate))
    for content, status in (("weights", 0), ("others", 1)):
        (tmp_path / "model.safetensors").write_text(content)
        with pytest.raises(SystemExit) as stop:
            cli.main(["export", "--verify", str(tmp_path)])
        assert stop.value.code == status
        told = capsys.readouterr().out
        assert ("as certified: pass, 1 file\n" in told) == (status == 0)


def test_examples_of_exports_are_of_what_the_digits_model_can(capsys):
    """In the help, the README and the docs: no printed command is refused for the quickstart's run."""
    from mvjax.digits import frozen_models
    from mvjax.export import folder as export_folder

    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    root = Path(__file__).parents[1]
    pages = [root / "README.md", root / "BUILD.md", *(root / "docs").glob("*.md")]
    text = capsys.readouterr().out + "".join(page.read_text() for page in pages)
    examples = re.findall(r"mvjax export \S+ --target \w+[^`\n#]*", text)
    assert len(examples) >= 4
    for example in examples:
        how = dict(re.findall(r"--(target|quantize|dtype) (\w+)", example))
        export_folder.refuse(
            frozen_models.MODEL, how["target"], how.get("dtype"), how.get("quantize")
        )


def test_an_interrupt_of_a_garbage_collection_is_not_lost(tmp_path):
    """Python swallows what a callback of the collector raises, and waits for threads before it ends."""
    program = tmp_path / "late.py"
    program.write_text(
        "import gc, sys, threading, time\n"
        "from mvjax import cli\n"
        "from mvjax.commands import training\n"
        "def interrupt(phase, info):\n"
        "    gc.callbacks.remove(interrupt)\n"
        "    raise KeyboardInterrupt\n"
        "def quickstart(args):\n"
        "    gc.callbacks.append(interrupt)\n"
        "    gc.collect()\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    time.sleep(60)\n"
        "training.quickstart = quickstart\n"
        "sys.exit(cli.main())\n"
    )
    done = subprocess.run(
        [sys.executable, str(program), "quickstart"], capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stderr) == (130, "mvjax quickstart: interrupted\n")


@pytest.mark.parametrize("inside", ["", "a/b"])
def test_the_quickstart_asks_for_a_folder_before_anything(inside, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    assert cli.main(["quickstart", "--out", str(file / inside)]) == cli.USER_ERROR
    told = capsys.readouterr()
    assert told.out == "" and f"but {file} is a file" in told.err
