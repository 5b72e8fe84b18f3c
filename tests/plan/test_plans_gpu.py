"""The 8.3 B step compiled for GPUs that are not here, and what is counted of it; `make plans-gpu`."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mvjax.config import schema
from mvjax.config import text as config_text
from mvjax.export import random_model
from mvjax.plan import (
    compiled_step,
    estimate,
    frame_plan,
    from_compiler,
    gpu_targets,
    search,
)
from mvjax.plan import text as plan_text
from mvjax.train import chips

pytestmark = pytest.mark.plans_gpu
ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments" / "moshika_vis.py"
NODE = "mesh.fsdp=8"
ONE = "mesh.fsdp=1 data.speech_rows=4 data.speechless_rows=12"
LEAN = "mesh.fsdp=1 data.speech_rows=1 data.speechless_rows=0 train.frozen_dtype=int8"
WITHIN = 0.15  # of what was compiled


@pytest.fixture(autouse=True, scope="module")
def compiler():
    assert gpu_targets.installed(), "run by `make plans-gpu`, whose environment has the extra"
    gpu_targets.prepare()


@pytest.mark.parametrize(
    ("topology", "settings"),
    [
        ("h100:8", NODE),
        ("h100:8", f"{NODE} train.remat=frozen"),
        ("h100:8", "mesh.fsdp=1 train.remat=frozen"),
        ("h100:8", "mesh.fsdp=4 mesh.tensor=2"),
        ("h100:2x8", f"{NODE} train.remat=frozen mesh.data=2"),
        ("a100:8", f"{NODE} train.remat=frozen"),
        ("h200:1", f"{ONE} train.remat=frozen"),
        ("l4:1", LEAN),
    ],
)
def test_counts_are_within_15_percent_of_the_compiled_step(topology, settings):
    devices = chips.topology(topology)
    run = config_text.override(config_text.load_experiment(EXPERIMENT), settings.split())
    run = search.fitted(run, devices)
    counted = estimate.estimated_plan(run, devices)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as in a run
        one = from_compiler.compiled_plan(run, devices, cache=compiled_step.cache_folder())
    said = plan_text.full(one)
    assert one.fits and one.from_hlo and "attention kernels" in one.kernels, said
    pairs = {
        "memory": (counted.peak_hbm, one.peak_hbm),
        "FLOPs": (counted.executed_flops, one.executed_flops),
        "HBM": (counted.hbm_traffic, one.hbm_traffic),
        "collectives": (
            sum(counted.collective_bytes.values()), sum(one.collective_bytes.values())
        ),
    }  # fmt: skip
    ratios = {name: ours / (theirs or 1.0) for name, (ours, theirs) in pairs.items() if ours}
    assert all(abs(ratio - 1) < WITHIN for ratio in ratios.values()), f"{ratios}\n{said}"
    network = one.collective_bytes.get(from_compiler.hlo_cost.BETWEEN_SLICES, 0.0)
    assert (network > 0) == (devices.slices > 1), said


@pytest.mark.parametrize("chip", ["h100", "h200", "b200", "a100", "l4", "l40s"])
def test_the_compiler_takes_every_gpu(chip):
    devices = gpu_targets.devices(chips.topology(f"{chip}:2"))
    assert len(devices) == 2 and chips.of_device(devices[0].device_kind) is chips.CHIPS[chip]
    placed = jax.sharding.SingleDeviceSharding(devices[0])
    program = jax.jit(lambda x: x @ x).trace(
        jax.ShapeDtypeStruct((256, 256), "bfloat16", sharding=placed)
    )
    compiled = program.lower(lowering_platforms=("cuda",)).compile(
        compiler_options=gpu_targets.COMPILER_OPTIONS
    )
    assert "fusion" in compiled.as_text() or "cublas" in compiled.as_text()


def test_a_tiny_model_of_odd_widths_is_compiled():
    run = config_text.load_experiment(ROOT / "experiments" / "digits.py")
    with jax.numpy_dtype_promotion("standard"):
        one = from_compiler.compiled_plan(run, chips.topology("l4:1"), cache=None)
    assert one.fits and one.executed_flops > 0


def test_a_frame_reads_kv_caches_as_they_are_stored():
    model = dataclasses.replace(random_model.SIZES["mid"], dtype="bfloat16")
    run = schema.Config(schema.FrozenFiles("", "", "", ""), model)
    plain, coded = (
        frame_plan.frame(run, chips.topology("l4:1"), 4, cache=None, stored=stored)
        for stored in (None, "int8")
    )
    saved = plain.needed.caches - coded.needed.caches
    assert saved > 0.48 * plain.needed.caches  # codes are half, and scales are added
    assert plain.hbm_bytes - coded.hbm_bytes > 0.95 * saved


@pytest.mark.parametrize(("stored", "rows"), [(None, 1), (None, 35), ("int8", 1), ("int8", 68)])
def test_a_frame_reads_a_tenth_more_than_needed_at_most(stored, rows):
    """As many as an H100 holds: nothing is computed again for lack of memory, or put together."""
    run = config_text.load_experiment(EXPERIMENT)
    cache = compiled_step.cache_folder()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        one = frame_plan.frame(run, chips.topology("h100:1"), rows, cache=cache, stored=stored)
    assert one.fits and one.needed.total <= one.hbm_bytes <= 1.1 * one.needed.total, one
    assert one.kernels["copies"].hbm_bytes < 0.001 * one.needed.total, one.kernels


def test_the_command_compiles_and_says_nothing_else(tmp_path):
    """As a user types it: without a setting of the environment."""
    environment = {n: v for n, v in os.environ.items() if n not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-m", "mvjax", "plan", str(EXPERIMENT), "--topology", "h200:1",
         "--set", "mesh.fsdp=1", "--set", "data.speech_rows=1", "--set", "data.speechless_rows=0",
         "--no-cache"],
        env=environment, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "compiled in" in done.stdout and gpu_targets.UNKNOWN in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("h200:1: compiling"), done.stderr
