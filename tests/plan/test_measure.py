"""The step on devices that are here: real steps on one and more simulated CPUs, and their report."""

import dataclasses
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import toy

from mvjax import tree
from mvjax.config import schema
from mvjax.plan import compiled_step
from mvjax.plan import measure as measure_lib
from mvjax.train import load, memory, sharding

ROOT = Path(__file__).parents[2]
ONE = (1, 1, 1)  # device


def measure(run: schema.Config, devices: int = 1) -> measure_lib.Measured:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a run
        return measure_lib.measure(run, jax.devices()[:devices], warmup=1, steps=3)


def check(one: measure_lib.Measured, devices: int) -> None:
    assert one.fits and one.device_kind == "cpu" and one.devices == devices and one.steps == 3
    assert one.step_seconds > 0 and one.compile_seconds > 0 and np.isfinite(one.loss)
    assert one.peak_memory > 0 and one.memory_source == "compiler" and not one.error


@pytest.mark.slow
def test_steps_run_on_one_device():
    run = toy.planned(mesh=ONE, remat="none")
    one = measure(run)
    check(one, 1)
    abstract = load.abstract_params(run)
    assert one.peak_memory > sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract)
    )


@pytest.mark.slow
def test_steps_run_on_several_devices_in_int8_and_from_features():
    run = toy.planned(mesh=(1, 2, 1), frozen_dtype="int8", remat="none")
    run = toy.with_data(run, features=True, speechless_rows=0)  # half the program to compile
    check(measure(run, 2), 2)


@pytest.fixture(scope="module")
def made():
    model = dataclasses.replace(toy.MODEL, dtype="bfloat16")
    run = toy.planned(model, mesh=(1, 2, 2), frozen_dtype="int8")
    mesh = sharding.make_mesh(run.mesh, jax.devices()[:4])
    arguments = compiled_step.step_arguments(run, mesh)
    state, frozen, rows = arguments
    parameters = measure_lib.random_parameters(tree.merge(state.adapters, frozen))
    return run, tree.flatten(parameters), measure_lib.random_batch(run.model, rows), arguments


def test_parameters_are_those_that_training_holds(made):
    run, flat, _, _ = made
    abstract = load.abstract_params(run)
    tree.assert_same_tree(tree.merge(*abstract), tree.unflatten(flat), place="random")
    for path, leaf in flat.items():
        assert leaf.sharding.spec == sharding.spec(path, leaf.ndim), path
    assert {leaf.dtype.name for leaf in flat.values()} == {"int8", "bfloat16", "float32"}


def test_parameters_are_noise_of_one_size(made):
    _, flat, _, _ = made
    codes = np.asarray(flat["backbone/blocks/mlp/in/kernel"], np.float32)
    scale = np.asarray(flat["backbone/blocks/mlp/in/scale"])
    for values in (codes * scale, np.asarray(flat["backbone/text_emb/embedding"], np.float32)):
        spread = measure_lib.SIZE / 3**0.5
        assert abs(values.mean()) < 4 * spread * values.size**-0.5
        assert np.abs(values).max() <= measure_lib.SIZE * 1.004  # bfloat16 rounds
        assert values.std() == pytest.approx(spread, rel=0.05)
        for axis in range(values.ndim):  # neighbors have nothing to do with each other
            x = np.moveaxis(values, axis, 0)
            if len(x) > 2:
                correlation = np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1]
                assert abs(correlation) < 4 * x.size**-0.5, axis
    assert np.abs(codes).max() == 127
    assert np.all(np.asarray(flat["backbone/blocks/norm1/scale"]) == 1)
    assert not np.array_equal(flat["xa/k/kernel"], flat["xa/v/kernel"])


def test_batches_are_valid_and_placed(made):
    run, _, rows, (_, _, shapes) = made
    jax.tree.map(
        lambda leaf, like: (
            pytest.fail(f"{leaf.shape} {like.shape}")
            if (leaf.shape, leaf.dtype, leaf.sharding) != (like.shape, like.dtype, like.sharding)
            else None
        ),
        rows,
        shapes,
    )
    codes = np.asarray(rows.speech.codes)
    assert codes.min() == 0 and codes[:, 0].max() < run.model.text_vocab
    assert codes[:, 1:].max() == run.model.audio_vocab - 1
    assert np.all(np.asarray(rows.speechless.codes)[:, 1:] == -1)
    assert np.asarray(rows.speech.images).std() > 50 and np.all(rows.speech.has_image)


@pytest.fixture
def program(monkeypatch):
    """Stands in for compiling and running; `program(error)` makes the running fail."""
    lowered = types.SimpleNamespace(compile=lambda: None)
    monkeypatch.setattr(compiled_step, "lower", lambda *args: lowered)
    monkeypatch.setattr(compiled_step, "peak_memory", lambda program: 55.0)
    monkeypatch.setattr(measure_lib, "_times", lambda *args, **kwargs: ([4.0, 2.0, 3.0], 1.5))

    def fail(message: str, module=measure_lib, where: str = "_times") -> None:
        def raising(*args, **kwargs):
            raise jax.errors.JaxRuntimeError(message)

        monkeypatch.setattr(module, where, raising)

    return fail


def test_out_of_memory_is_an_answer(program):
    program("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3.50GiB.\nAt")
    one = measure(toy.planned(mesh=ONE))
    assert not one.fits and one.step_seconds == 0 and one.steps == 0
    assert one.peak_memory == 55 and one.memory_source == "compiler"
    assert one.error == "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3.50GiB."


def test_out_of_memory_while_compiling_tells_the_allocation(program):
    program("RESOURCE_EXHAUSTED: Out of memory allocating 77 bytes", compiled_step, "lower")
    one = measure(toy.planned(mesh=ONE))
    assert not one.fits and one.peak_memory == 77 and one.memory_source == "allocation"


def test_another_error_of_the_device_is_one(program):
    program("INTERNAL: no kernel")
    with pytest.raises(jax.errors.JaxRuntimeError, match="no kernel"):
        measure(toy.planned(mesh=ONE))


def test_memory_is_the_devices_peak_unless_that_is_an_earlier_one(program, monkeypatch):
    one = measure(toy.planned(mesh=ONE))
    assert one.step_seconds == 3 and one.peak_memory == 55 and one.memory_source == "compiler"
    peaks = iter((20.0, 70.0, 70.0, 70.0))
    monkeypatch.setattr(memory, "device_peak_bytes", lambda devices: next(peaks))
    one, again = measure(toy.planned(mesh=ONE)), measure(toy.planned(mesh=ONE))
    assert one.peak_memory == 70 and one.memory_source == "device"
    assert again.peak_memory == 55 and again.memory_source == "compiler"


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("Out of memory while trying to allocate 17179869184 bytes.", 2**34),
        ("Out of memory while trying to allocate 16.00GiB.", 2**34),
        ("Error allocating device buffer: Attempting to allocate 512.00M. That", 2**29),
        ("out of memory", 0),
    ],
)
def test_the_size_of_a_failed_allocation(message, size):
    assert measure_lib._failed_allocation(message) == size


class Device:
    """Reports its peak memory."""

    def __init__(self, **stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats or None


def test_the_fullest_device_counts():
    few, many = Device(peak_bytes_in_use=5), Device(peak_bytes_in_use=9)
    assert memory.device_peak_bytes([few, many, Device()]) == 9
    assert memory.device_peak_bytes([Device()]) is None


def test_measuring_needs_neither_records_nor_command_line():
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'grain', 'array_record', 'tyro', 'torchao', 'msgspec'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from mvjax.config import text\n"
        "from mvjax.train import flops, chips\n"
        "from mvjax.plan import estimate, gpus, measure\n"
        "print('imported')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "imported\n", done.stderr
