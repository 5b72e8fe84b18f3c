"""`mvjax train --dry-run`: what a run would begin with, without a step and without a file."""

import types

import jax
import pytest
import toy

from mvjax import cli, run_folder
from mvjax.commands import plan
from mvjax.config import schema
from mvjax.data import mixture
from mvjax.plan import compiled_step, dry_run
from mvjax.train import begin, checkpoint, chips, load, resume, sharding
from mvjax.train import step as step_lib


@pytest.fixture
def config(tmp_path):
    return toy.make_config(tmp_path / "frozen", mesh=schema.MeshConfig(2, 2, 2))


@pytest.fixture
def records(monkeypatch, config):
    """The toy's batches; returns the list of missing records."""
    missing = []
    monkeypatch.setattr(mixture, "records_identity", lambda data: {"digits": "now"})
    monkeypatch.setattr(mixture, "missing_records", lambda data: missing)
    monkeypatch.setattr(begin, "mixture_of", lambda *arguments: toy.Data(config.data))
    return missing


@pytest.fixture
def memory(monkeypatch):
    """A step that needs 7 GB a device, of 8; returns what it needs."""
    need = types.SimpleNamespace(
        argument_size_in_bytes=4e9,
        output_size_in_bytes=2e9,
        alias_size_in_bytes=2e9,
        temp_size_in_bytes=3e9,
        generated_code_size_in_bytes=0,
    )
    step = types.SimpleNamespace(
        trace=lambda *arguments: step,
        lower=lambda **platforms: step,
        compile=lambda: step,
        memory_analysis=lambda: need,
    )
    monkeypatch.setattr(step_lib, "make", lambda *arguments, **options: step)
    arguments = compiled_step.StepArguments(types.SimpleNamespace(adapters={}), {}, ())
    monkeypatch.setattr(compiled_step, "step_arguments", lambda run, mesh: arguments)
    monkeypatch.setattr(dry_run, "_limit", lambda mesh: 8e9)
    return need


def check(config, folder, **options):
    said = []
    status = dry_run.check(config, folder, say=said.append, **options)
    return status, "\n".join(said)


def test_it_tells_mesh_files_run_records_and_memory_and_writes_nothing(
    config, tmp_path, records, memory
):
    before = sorted(tmp_path.rglob("*"))
    status, said = check(config, tmp_path / "run")
    assert status == 0 and sorted(tmp_path.rglob("*")) == before
    assert "mesh: data=2 x fsdp=2 x tensor=2" in said and f"run: {tmp_path}/run, new" in said
    assert (
        f"frozen files: moshi {config.frozen.moshi}" in said and "batch of step 1 is made" in said
    )
    assert "memory: a step takes 7.00 GB on each device, which has 8.0 GB: fits" in said


def test_for_other_devices_it_tells_what_does_not_depend_on_those_here(config, tmp_path, records):
    devices = chips.topology("h100:8")
    status, said = check(config, tmp_path / "run", topologies=[devices])
    assert status == 0 and "complete, of the right shapes" in said
    assert "batch of step 1 is made" in said and "mesh:" not in said and "memory:" not in said
    with pytest.raises(ValueError, match="h100:4: mesh: expected sizes that multiply to 4"):
        check(config, tmp_path / "run", topologies=[devices, chips.topology("h100:4")])


def test_slices_of_a_topology_reach_the_plan(monkeypatch, tmp_path, capsys):
    planned = []
    monkeypatch.setattr(
        dry_run, "check", lambda run, out, topologies, **_: planned.extend(topologies)
    )
    monkeypatch.setattr(
        plan, "show", lambda run, topologies, measured: planned.extend(topologies) or 0
    )
    words = ["train", "experiments/digits.py", "--out", str(tmp_path / "run"), "--slices", "2"]
    assert cli.main([*words, "--dry-run", "--topology", "v5e:2x4"]) == 0
    assert planned == 2 * [chips.topology("v5e:2x4", 2)] and planned[0].slices == 2
    assert cli.main([*words, "--dry-run"]) == cli.USER_ERROR
    assert "--slices 2: expected --dry-run --topology" in capsys.readouterr().err


def test_what_does_not_fit_is_status_1(config, tmp_path, records, memory):
    memory.temp_size_in_bytes = 5e9
    status, said = check(config, tmp_path / "run")
    assert status == 1 and "takes 9.00 GB on each device, which has 8.0 GB: does not fit" in said


@pytest.mark.parametrize(
    "words", ["RESOURCE_EXHAUSTED: no", "x (17.50G) exceeds available HBM (1.0G)"]
)
def test_what_the_compiler_refuses_for_its_memory_is_status_1(
    words, config, tmp_path, records, memory, monkeypatch
):
    def refused():
        raise jax.errors.JaxRuntimeError(words)

    step = step_lib.make()
    monkeypatch.setattr(step, "compile", refused)
    status, said = check(config, tmp_path / "run")
    assert status == 1 and f"memory: does not fit: {words}" in said
    words = "INTERNAL"
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        check(config, tmp_path / "run")


def test_records_that_were_made_anew_are_refused_as_a_resume_would(
    config, tmp_path, records, memory, monkeypatch
):
    old = {"step": 4, "frozen": load.open_frozen(config).identity, "records": {"digits": "then"}}
    saved = checkpoint.Checkpoint(tmp_path, old, {})
    monkeypatch.setattr(checkpoint, "exists", lambda root: True)
    monkeypatch.setattr(checkpoint, "newest", lambda root: saved)
    monkeypatch.setattr(resume, "finished", lambda *_, **__: None)
    monkeypatch.setattr(resume, "check_config", lambda *_, **__: "")
    with pytest.raises(ValueError, match="was trained on other records of digits"):
        check(config, tmp_path / "run")
    old["records"] = {"digits": "now"}
    assert "resumes at step 4" in check(config, tmp_path / "run")[1]


def test_records_that_are_to_be_made_are_named_and_not_made(config, tmp_path, records, memory):
    def never(root):
        raise AssertionError(root)

    records.append("data/visual")
    status, said = check(toy.with_data(config, prepare=never), tmp_path / "run")
    assert status == 0 and "records: to be made: data/visual" in said


def test_what_a_run_would_refuse_it_refuses(config, tmp_path, records, memory):
    with pytest.raises(ValueError, match="not divisible by"):
        check(toy.with_data(config, speech_rows=3), tmp_path / "run")
    with pytest.raises(ValueError, match=f"{tmp_path}/no: expected a run folder"):
        check(config, tmp_path / "run", warm_start=run_folder.RunStep(tmp_path / "no", None))


@pytest.mark.slow
def test_the_memory_is_the_compilers(config, monkeypatch):
    said = []
    monkeypatch.setattr(dry_run, "_limit", lambda mesh: 1.0)
    mesh = sharding.make_mesh(config.mesh)
    with jax.numpy_dtype_promotion("standard"):
        assert dry_run._check_memory(config, mesh, said.append) == 1
    size = float(said[0].split()[4])
    leaves = jax.tree.leaves(load.shapes(config).frozen)
    params = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    assert 0 < params / 8e9 < size + 0.01
