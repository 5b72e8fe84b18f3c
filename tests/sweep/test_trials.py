import dataclasses
import json
import signal
import time

import pytest
import tiny_sweep
import toy

from mvjax import cli, locks, tree
from mvjax.config import study as study_lib
from mvjax.eval import benchmarks
from mvjax.sweep import board as board_lib
from mvjax.sweep import cost, outcome, running, trials
from mvjax.train import checkpoint, resume

PROTOCOL = dataclasses.asdict(benchmarks.PromptProtocol()) | {"seed": 1}
COST = {"parameters": {"adapters": 3, "gate": 1}, "flops_per_frame": 2.0, "bytes_per_frame": 4.0}


@pytest.fixture
def experiment(tmp_path):
    tiny_sweep.write(tmp_path, toy.planned(steps=3, checkpoint_every=1))
    return tmp_path / "experiment.py"


@pytest.fixture
def commands(monkeypatch):
    """Stands in for the commands: `fails` names those that fail; returns those that were run."""
    run, fails = [], set()

    def call(self, one, command, lock, told):
        run.append(f"{command[1]} {one}")
        told.seconds += 1.5
        if run[-1] in fails:
            raise running.Failed("line 1\nline 2")
        if command[1] == "train":
            (one.folder / "trained").touch()
        else:
            (one.folder / "eval").mkdir(exist_ok=True)
            result = {"table": [{"kind": "all", "n": 3, "text": 0.5}], "protocol": PROTOCOL}
            result |= {"step": 3, "limit": None, "benchmark": "asked", "samples": 3}
            (one.folder / "eval" / "asked.json").write_text(json.dumps(result))

    monkeypatch.setattr(running.Runner, "_call", call)
    monkeypatch.setattr(outcome, "trained", lambda one: (one.folder / "trained").exists())
    monkeypatch.setattr(cost.Costs, "of", lambda self, one: COST)
    return run, fails


def swept(capsys, experiment, *words) -> tuple[int, str]:
    status = cli.main(["sweep", str(experiment), "--out", str(experiment.parent / "out"), *words])
    return status, capsys.readouterr().err


def test_every_trial_runs_once_with_every_seed(capsys, experiment, commands):
    run, _ = commands
    status, told = swept(capsys, experiment, "--seeds", "2", "--set", "optim.clip_norm=2")
    names = ["gate/seed-0", "none/seed-0", "gate/seed-1", "none/seed-1"]
    assert status == 0 and run == [f"{c} {n}" for n in names for c in ("train", "eval")]
    assert "none/seed-1  finished  asked text 50.0" in told and "4 runs: 4 finished" in told
    out = experiment.parent / "out"
    trial = json.loads((out / "none" / "seed-1" / "trial.json").read_text())
    assert trial == {
        "name": "none", "seed": 1, "state": "finished", "error": None, "seconds": 3.0, **COST
    }  # fmt: skip
    sweep = json.loads((out / "sweep.json").read_text())
    assert sweep["seeds"] == [0, 1] and list(sweep["trials"]) == ["gate", "none"]
    assert sweep["trials"]["none"]["optim"]["clip_norm"] == 2.0
    assert study_lib.from_json(sweep["study"]).baseline == "gate"
    run.clear()
    status, told = swept(capsys, experiment, "--seeds", "2", "--set", "optim.clip_norm=2")
    assert (status, run) == (0, []) and "4 runs: 4 finished" in told
    assert swept(capsys, experiment, "--pick", "none", "--seeds", "3")[0] == 0
    assert run == ["train none/seed-2", "eval none/seed-2"]
    sweep = json.loads((out / "sweep.json").read_text())
    assert sweep["seeds"] == [0, 1, 2] and list(sweep["trials"]) == ["gate", "none"]


def test_a_failed_trial_is_shown_stops_nobody_and_is_tried_again(capsys, experiment, commands):
    run, fails = commands
    fails.add("train gate/seed-0")
    status, told = swept(capsys, experiment, "--jobs", "2")
    assert status == 1 and set(run) == {
        "train gate/seed-0", "train none/seed-0", "eval none/seed-0"
    }  # fmt: skip
    assert "2 runs: 1 finished, 1 failed" in told
    assert told.endswith("gate/seed-0 failed:\n  line 1\n  line 2\n")
    trial = json.loads((experiment.parent / "out/gate/seed-0/trial.json").read_text())
    assert (trial["state"], trial["error"]) == ("failed", "line 1\nline 2")
    run.clear(), fails.clear()
    assert swept(capsys, experiment)[0] == 0
    assert run == ["train gate/seed-0", "eval gate/seed-0"]


def test_what_the_printed_commands_did_is_not_done_again(capsys, experiment, commands):
    run, _ = commands
    out = experiment.parent / "out"
    options = "--prompt text"
    words = ["sweep", str(experiment), "--out", str(out), "--dry-run"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == (
        f"mvjax train {experiment} --pick none --set train.seed=0 --out {out}/none/seed-0"
        f" && mvjax eval {out}/none/seed-0 --benchmark {experiment.parent}/asked.py {options}"
    )
    assert len(printed) == 2 and not out.exists()
    (out / "none" / "seed-0").mkdir(parents=True)
    (out / "none" / "seed-0" / "trained").touch()
    assert cli.main(words) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("mvjax eval")
    assert swept(capsys, experiment, "--pick", "none")[0] == 0
    assert run == ["eval none/seed-0"]


@pytest.mark.parametrize("held", [outcome.LOCK, "lock"])
def test_a_run_that_another_process_works_on_is_waited_for(experiment, commands, monkeypatch, held):
    run, _ = commands
    sweep = trials.load(experiment, out=experiment.parent / "out", picks=["none"])
    (only,) = sweep.runs()
    only.folder.mkdir(parents=True)
    monkeypatch.setattr(running, "_LOOK_AGAIN", 0.05)
    board = board_lib.Board([only], title="")
    runner = running.Runner(sweep, board, jobs=1, threads=1)
    if held == "lock":  # POSIX locks hold between processes only
        monkeypatch.setattr(locks, "holder", lambda path: held_by.pop() if held_by else None)
        held_by = ["process 7"] * 3
        runner.start()
    else:
        with locks.held(only.folder / held, shared=True):
            runner.start()
            assert not runner.join(0.3) and board.count(board_lib.ELSEWHERE) == 1 and not run
    assert runner.join(10.0) and board.count(board_lib.FINISHED) == 1
    assert run == ["train none/seed-0", "eval none/seed-0"]
    assert not (only.folder / outcome.LOCK).exists()


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Stands in for Python: runs this bash script, whose $3 is "train" or "eval"."""

    def write(text: str) -> None:
        (tmp_path / "python").write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "python").chmod(0o755)
        monkeypatch.setattr(running.sys, "executable", str(tmp_path / "python"))

    return write


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("echo to; echo do >&2; echo '(MVJAX_DEBUG=1 shows where)'; exit 3", "status 3\nto\ndo"),
        ("kill -9 $$", "killed by SIGKILL (the memory is full?)"),
        (
            "echo 'mvjax train: it diverged' >&2; seq 40 >&2; exit 2",
            "status 2\nmvjax train: it diverged\n1\n",
        ),
        (":", "mvjax train: stopped by a signal; the same sweep continues"),
    ],
)
def test_how_a_command_failed(capsys, experiment, program, text, error):
    program(text)
    status, told = swept(capsys, experiment, "--pick", "gate")
    assert status == 1 and ("diverged" in text) == ("failed  mvjax train: it diverged\n" in told)
    trial = json.loads((experiment.parent / "out/gate/seed-0/trial.json").read_text())
    assert trial["state"] == "failed" and error in trial["error"]


def test_a_command_has_few_threads_and_holds_the_lock_of_its_run(experiment, program):
    program('echo "$OMP_NUM_THREADS $PJRT_NPROC"; sleep 0.5; exit 1')
    sweep = trials.load(experiment, out=experiment.parent / "out", picks=["gate"])
    (run,) = sweep.runs()
    runner = running.Runner(sweep, board_lib.Board([run], title=""), jobs=1, threads=3)
    runner.start()
    log = run.folder / "trial.log"
    for _ in range(200):
        if log.exists() and "3 3" in log.read_text():
            break
        time.sleep(0.05)
    assert "3 3\n" in log.read_text()
    with (
        pytest.raises(locks.Taken, match="process "),
        locks.held(run.folder / outcome.LOCK, shared=True),
    ):
        pass
    assert runner.join(20.0)


def test_stopped_by_a_signal(capsys, experiment, program):
    """The training is told once, may save, and is not followed by an evaluation; a status of its own."""
    program("trap 'echo saved; exit 0' TERM; kill -TERM $PPID; while :; do sleep 0.05; done")
    status, told = swept(capsys, experiment)
    assert status == 128 + signal.SIGTERM and "stopped; the same command continues" in told
    assert "2 runs: 1 stopped, 1 waits" in told
    folder = experiment.parent / "out/gate/seed-0"
    log = (folder / "trial.log").read_text()
    assert log.count("saved") == 1 and log.count("$ mvjax") == 1
    assert json.loads((folder / "trial.json").read_text())["state"] == "stopped"
    assert not (folder / outcome.LOCK).exists()


def test_results_of_another_question_or_step_are_asked_anew(experiment):
    sweep = trials.load(experiment, out=experiment.parent / "out")
    run, asked = sweep.runs()[0], sweep.study.benchmarks[0]
    (run.folder / "eval").mkdir(parents=True)
    good = {"step": 3, "limit": None, "table": [{"kind": "all", "text": 0.1}]}
    for change, done in (
        ({}, True),
        ({"step": 2}, False),
        ({"limit": 5}, False),
        ({"table": [{"kind": "all", "audio": 0.1}]}, False),
        ({"table": []}, False),
    ):
        (run.folder / "eval" / "asked.json").write_text(json.dumps(good | change))
        assert outcome.evaluated(sweep, run, asked) == done, change
    (run.folder / "eval" / "asked.json").write_text('{"step": 3')
    assert not outcome.evaluated(sweep, run, asked)


def test_trained_runs_of_another_config_are_refused_and_left_as_they_are(
    capsys, experiment, commands
):
    run, _ = commands
    assert swept(capsys, experiment, "--seeds", "2")[0] == 0
    out = experiment.parent / "out"
    for one in trials.load(experiment, out=out, seeds=2).runs():
        resume.write_config(one.folder, one.config)
        step = one.folder / "checkpoints" / "00000003"
        step.mkdir(parents=True)
        checkpoint._listing(step).touch()
    run.clear()
    assert swept(capsys, experiment, "--seeds", "2")[0] == 0
    status, told = swept(capsys, experiment, "--seeds", "2", "--set", "train.steps=4")
    assert (status, run) == (2, []) and "train.steps: the run has 3, now 4" in told
    assert "So do the folders of none/seed-0, gate/seed-1, none/seed-1." in told
    trial = json.loads((out / "gate/seed-0/trial.json").read_text())
    assert trial["state"] == "finished"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pick", "nome"], "--pick: no 'nome' in sweep(); did you mean 'none'?"),
        (["--set", "optim.clip_nom=1"], "did you mean 'clip_norm'?"),
        (["--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["--threads", "0", "--dry-run"], "--threads: expected at least 1, got 0"),
        (["--set", "train.seed=5"], "--set train.seed=5: expected no seed"),
        (["--jobs", "0"], "--jobs: expected at least 1, got 0"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(capsys, experiment, words, message):
    status, told = swept(capsys, experiment, *words)
    assert status == 2 and message in told and not (experiment.parent / "out").exists()


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('str(HERE / "asked.py")', '"digit"', "study(): benchmark: unknown 'digit'; did you mean 'digits'?"),
        ('("text",)', '("text", "audio")', "benchmark asked: expected modes among text, got audio"),
        ('("text",))', '("text",), 0)', "limit: expected at least 1, got 0"),
        ('str(HERE / "asked.py")', '"coco"', "expected the folder that holds coco/, got none; put"),
        *(('return {"gate"', f'return {{"{name}": BASE, "gate"', "sweep(): expected names of letters")
          for name in ("sweep.json", "-x", "Report", "compiled", "...")),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_before_anything_is_trained(
    capsys, experiment, commands, old, new, message, words
):
    text = experiment.read_text()
    assert old in text
    experiment.write_text(text.replace(old, new))
    status, told = swept(capsys, experiment, *words)
    assert status == 2 and message in told and not (experiment.parent / "out").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"protocol": PROTOCOL | {"tail": 1.0, "seed": 7}}, "(seed 7, now 1; tail 1.0, now 20.0)"),
        ({"limit": 9, "samples": 9}, "(9 samples, now 3)"),
        ({"table": []}, "(a file that cannot be read)"),
        ({"limit": 2, "samples": 2}, None),  # goes on
    ],
)
def test_a_run_that_was_asked_otherwise_is_asked_again(capsys, experiment, commands, change, told):
    run, _ = commands
    assert swept(capsys, experiment, "--pick", "gate")[0] == 0
    path = experiment.parent / "out/gate/seed-0/eval/asked.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps(good | change))
    words = ["sweep", str(experiment), "--out", str(experiment.parent / "out"), "--dry-run"]
    assert cli.main([*words, "--pick", "gate"]) == 0
    assert capsys.readouterr().out.count("--again") == (told is not None)
    run.clear()
    status, said = swept(capsys, experiment, "--pick", "gate")
    assert (status, run) == (0, ["eval gate/seed-0"]) and json.loads(path.read_text()) == good
    assert (f"asked otherwise {told} and is asked again" in said) == (told is not None)


def test_a_study_that_names_no_trial_or_a_file_without_a_sweep_is_refused(tmp_path, experiment):
    text = experiment.read_text().replace('baseline="gate"', 'baseline="gates"')
    experiment.write_text(text)
    with pytest.raises(
        ValueError, match=r"study\(\): no 'gates' in sweep\(\); did you mean 'gate'"
    ):
        trials.load(experiment, out=tmp_path)
    experiment.write_text(text.replace("def sweep", "def swept"))
    with pytest.raises(ValueError, match=r"expected a function sweep\(\)"):
        trials.load(experiment, out=tmp_path)


def test_a_study_survives_json():
    study = study_lib.Study(
        "a", "b", plot="curve", x_label="x", paper="speech_ratio", baseline="p",
        points=(study_lib.Point("p", "s", 1.0), study_lib.Point("q", x=2.0)),
        benchmarks=(study_lib.Asked("digits", ("text",), 6),),
    )  # fmt: skip
    assert study_lib.from_json(json.loads(json.dumps(study_lib.to_json(study)))) == study
    assert (study.point("q").series, study.point("z").series) == ("q", "z")
    with pytest.raises(ValueError, match="a curve needs the x"):
        dataclasses.replace(study, points=(study_lib.Point("p"),))


def test_costs_are_counted_once_for_all_seeds_of_a_model(experiment, monkeypatch):
    counted = []
    monkeypatch.setattr(cost, "_in_a_process", lambda config: counted.append(config) or COST)
    sweep = trials.load(experiment, out=experiment.parent / "out", seeds=2)
    costs = cost.Costs()
    for run in sweep.runs():
        run.folder.mkdir(parents=True)
        assert costs.of(run) == COST
    assert len(counted) == 2
    (changed,) = trials.load(
        experiment, out=sweep.out, picks=["gate"], settings=["model.cross_attention.share=kv"]
    ).runs()
    costs.of(changed)
    assert len(counted) == 3


def test_parameters_and_the_frame_of_a_model():
    model = dataclasses.replace(
        toy.MODEL,
        backbone=dataclasses.replace(toy.MODEL.backbone, layers=1),
        depformer=dataclasses.replace(toy.MODEL.depformer, layers=1),
        codebooks_out=1,
        delays=(0, 0, 1),
    )
    counted = cost.count(toy.planned(model))
    D, G = 24, 14
    assert counted["parameters"]["gate"] == 2 * D * G < counted["parameters"]["adapters"]
    kernels = sum(
        leaf.size
        for path, leaf in tree.flatten(toy.params(model)).items()
        # those of a frame: keys and values of the image are made once
        if path.endswith("kernel") and not path.startswith(("image/", "xa/k", "xa/v"))
    )
    assert 2 * kernels < counted["flops_per_frame"] < 4 * kernels
    assert counted["bytes_per_frame"] > 4 * kernels  # float32
