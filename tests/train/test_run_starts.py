"""What a run begins with: its own checkpoint, another run's, more steps than before, or nothing to do."""

import dataclasses
import json
import threading

import jax
import numpy as np
import pytest
import toy

from mvjax import run_folder
from mvjax.config import schema
from mvjax.train import checkpoint, distributed, fit, load, saving, sharding


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return toy.make_config(tmp_path_factory.mktemp("frozen"), mesh=schema.MeshConfig(2, 2, 2))


def run(config, folder, **options):
    return fit.fit(config, folder, data=toy.Data(config.data), **options)


def newest(folder):
    return checkpoint.newest(folder / run_folder.CHECKPOINTS)


def everything(folder):
    """Every path with its time and size."""
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in [folder, *folder.rglob("*")]}


def test_a_finished_run_says_so_and_touches_nothing(config, tmp_path, quick, capsys):
    folder = tmp_path / "run"
    first = run(config, folder)
    before, _ = everything(folder), capsys.readouterr()
    assert run(config, folder) == first
    assert everything(folder) == before
    told = capsys.readouterr().err
    assert f"{folder}: finished, 12 steps are done; nothing is changed" in told
    assert "--extend" in told and len(told.splitlines()) == 1


def test_a_finished_run_without_its_summary_gets_one(config, tmp_path, quick):
    folder = tmp_path / "run"
    first = run(config, folder, quiet=True)
    (folder / run_folder.SUMMARY).write_text("{")
    again = run(config, folder, quiet=True)
    assert json.loads((folder / run_folder.SUMMARY).read_text())["finished"]
    assert again.metrics == first.metrics


def test_more_steps_and_another_learning_rate_need_the_flag(config, tmp_path, quick, capsys):
    folder = tmp_path / "run"
    run(config, folder, quiet=True)
    longer = toy.with_train(config, steps=16)
    longer = dataclasses.replace(longer, optim=dataclasses.replace(config.optim, learning_rate=0.5))
    with pytest.raises(ValueError, match="train.steps: the run has 12, now 16") as error:
        run(longer, folder)
    assert "another optim.learning_rate, train.steps add --extend" in str(error.value)
    with pytest.raises(ValueError, match="train.seed") as error:
        run(toy.with_train(longer, seed=7), folder, extend=True)
    assert "train.steps" not in str(error.value)
    assert run(longer, folder, extend=True).step == 16
    told = capsys.readouterr().err
    assert "from here on: optim.learning_rate 0.01 -> 0.5, train.steps 12 -> 16" in told
    assert load.read_config(folder).train.steps == 16
    lines = (folder / run_folder.METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 4, 6, 8, 10, 12, 14, 16]


def test_there_must_be_a_run_to_extend_with_no_more_steps_done(config, tmp_path, quick):
    with pytest.raises(ValueError, match="--extend: expected a run to go on with in .*none"):
        run(config, tmp_path / "none", extend=True)
    run(config, tmp_path / "run", quiet=True)
    with pytest.raises(ValueError, match="train.steps: the run has done 12, more than 9"):
        run(toy.with_train(config, steps=9), tmp_path / "run", extend=True)


def test_a_new_run_starts_with_the_adapters_of_another(config, tmp_path, quick, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    run(config, first, quiet=True)
    monkeypatch.setattr(
        load,
        "weights",
        lambda run, mesh, files: load.ModelParams({"scale": jax.numpy.zeros(3)}, {}),
    )
    short = toy.with_train(config, steps=3)
    run(short, second, quiet=True, warm_start=run_folder.RunStep(first, 8))
    found = newest(second)
    adapters = checkpoint.read_adapters(found, load.shapes(config).adapters)
    np.testing.assert_array_equal(adapters["scale"], 1)
    assert found.metadata["warm_start"] == f"{first}@8" and found.metadata["step"] == 3
    run(toy.with_train(config, steps=5), second, quiet=True, extend=True)  # its own checkpoint
    assert newest(second).metadata["warm_start"] == f"{first}@8"
    with pytest.raises(
        ValueError, match=r"no checkpoint of step 7; there are those of steps: 8, 12"
    ):
        run(short, tmp_path / "third", warm_start=run_folder.RunStep(first, 7))
    assert not (tmp_path / "third").exists()


def test_adapters_of_other_shapes_are_refused_by_name(config, tmp_path, quick, monkeypatch):
    run(config, tmp_path / "run", quiet=True)
    other = {"scale": np.zeros(4, np.float32), "gate": np.zeros(1, np.float32)}
    shapes = iter([load.shapes(config), load.ModelParams(other, {})])
    monkeypatch.setattr(load, "shapes", lambda run: next(shapes))
    with pytest.raises(ValueError, match="2 parameters differ:\n  gate: missing\n  scale: exp"):
        load.find_adapters(config, run_folder.RunStep(tmp_path / "run", None))


def test_checkpoints_are_due_by_the_clock_too(config, tmp_path, quick):
    often = toy.with_train(
        config, checkpoint_every=100, checkpoint_minutes=1e-9, keep_checkpoints=9
    )
    run(often, tmp_path / "run", quiet=True)
    steps = [int(saved.name) for saved in checkpoint.folders(tmp_path / "run/checkpoints")]
    assert steps == list(range(12, 3, -1))
    without = dataclasses.replace(often.train, checkpoint_minutes=None)
    assert not saving.Schedule(without, sharding.make_mesh(often.mesh)).due(1)


def test_of_several_processes_the_first_ones_clock_counts_a_step_later(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    now = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    mesh = sharding.make_mesh(schema.MeshConfig(2, 2, 2))
    settings = schema.TrainConfig(checkpoint_every=10, checkpoint_minutes=1.0)
    due, schedule = [], saving.Schedule(settings, mesh)
    for step in range(1, 11):
        now[0] += 20
        if schedule.due(step):
            due.append(step)
    assert due == [4, 8, 10]
    request = distributed.Request(mesh, threading.Event())
    request.wished.set()
    assert [request.granted() for _ in range(2)] == [False, True]
    request.withdraw()
    assert not any(request.granted() for _ in range(3))


def test_a_run_with_its_step_is_read_one_way(tmp_path):
    assert run_folder.parse("runs/a") == (run_folder.Path("runs/a"), None)
    assert run_folder.parse("runs/a@300") == (run_folder.Path("runs/a"), 300)
    (tmp_path / "a@b").mkdir()
    assert run_folder.parse(f"{tmp_path}/a@b").step is None
    assert str(run_folder.parse(f"{tmp_path}/a@b@7")) == f"{tmp_path}/a@b@7"
    with pytest.raises(ValueError, match="expected RUN@STEP, .* got 'last' as STEP"):
        run_folder.parse("runs/a@last")
