"""Plans for GPUs: estimated where there are none, measured where there are, and how both are printed."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy

from mvjax.config import schema
from mvjax.plan import estimate, from_compiler, gpu_targets, search
from mvjax.plan import gpus as gpus_lib
from mvjax.plan import measure as measure_lib
from mvjax.plan import text as plan_text
from mvjax.train import chips, flops

ROOT = Path(__file__).parents[2]
H100 = "NVIDIA H100 80GB HBM3"


def took(seconds: float, **fields) -> measure_lib.Measured:
    one = measure_lib.Measured(H100, 2, True, seconds, 61.5e9, "device", 48.0, 10, loss=2.5)
    return dataclasses.replace(one, **fields)


REFUSED = took(
    0.0,
    fits=False,
    peak_memory=99e9,
    memory_source="compiler",
    steps=0,
    error="RESOURCE_EXHAUSTED: no",
)


def plans(name: str, run: schema.Config, *, fit: int = 0, estimate_only: bool = False):
    return search.plans(
        run,
        chips.topology(name),
        fit=fit,
        estimate_only=estimate_only,
        cache=None,
        say=lambda text: None,
    )


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs that are not: `answer(run)` is what measuring a run on them gives."""
    asked = []
    monkeypatch.setattr(gpus_lib, "local_gpus", lambda topology: (("one", "two"), ""))

    def use(answer):
        def measure(run, devices):
            assert devices == ("one", "two")
            asked.append(run)
            return answer(run)

        monkeypatch.setattr(measure_lib, "measure", measure)
        return asked

    return use


def test_without_gpus_the_plan_is_compiled_if_the_compiler_is_here(monkeypatch):
    def compiled(run, topology, *, cache):
        return dataclasses.replace(estimate.estimated_plan(run, topology), compiled=True)

    monkeypatch.setattr(from_compiler, "compiled_plan", compiled)
    monkeypatch.setattr(gpu_targets, "installed", lambda: True)
    (one,) = plans("h100:4", toy.planned())
    tried = [other.compiled for other in plans("h100:4", toy.planned(), fit=2)]
    assert one.compiled and one.note == "" and tried[:3] == [True, True, False]
    assert not plans("h100:4", toy.planned(), estimate_only=True)[0].compiled


def test_without_gpus_and_compiler_the_plan_is_counted_and_says_why(monkeypatch):
    monkeypatch.setattr(gpu_targets, "installed", lambda: False)
    (one,) = plans("h100:4", toy.planned())
    assert one.measured is None and one.fits and one.times is not None
    text = plan_text.full(one)
    assert "counted, not compiled; not measured: no GPU is here that jax can use" in text
    assert '`pip install "mvjax[gpu-plan]"`' in text
    assert "measured on" not in text and "measured" not in plan_text.table([one])
    assert all(other.note for other in plans("h100:4", toy.planned(), fit=2))


def test_what_was_measured_stands_beside_the_estimate(gpus):
    asked = gpus(lambda run: took(0.25))
    (one,) = plans("h100:2", toy.planned())
    assert [run.mesh for run in asked] == [schema.MeshConfig(2, 1, 1)]
    frames = flops.frames_per_step(one.run.data)
    assert one.fits and one.measured is not None
    speed = one.speed(one.measured.step_seconds)
    assert speed.frames_per_second == pytest.approx(frames / 0.25)
    wanted = one.flops.model_flops / (0.25 * 2 * chips.CHIPS["h100"].peak_flops)
    assert speed.mfu == pytest.approx(wanted)
    text = plan_text.full(one)
    assert f"measured on 2 x {H100}" in text and "250.0 ms, median of 10" in text
    assert "61.500 GB, peak of the fullest device" in text
    assert f"{frames / 0.25:,.0f} frames/s; MFU" in text
    assert "rates: NVIDIA H100 SXM and DGX data sheets; counted, not compiled\n" in text


def test_the_table_has_columns_for_it_only_where_something_was_measured(gpus):
    gpus(lambda run: took(0.25))
    (one,) = plans("h100:2", toy.planned())
    (other,) = plans("h100:2", toy.planned(), estimate_only=True)
    head, first, second = plan_text.table([one, other]).splitlines()
    assert head.endswith("peak GB") and "measured: ms" in head
    assert first.split()[-4] == "250" and first.split()[-1] == "61.5"
    assert second.split()[-1] == f"{other.speed(other.times.roofline).hours:.1f}"


def test_what_runs_out_of_memory_does_not_fit_whatever_the_estimate(gpus):
    gpus(lambda run: REFUSED)
    (one,) = plans("h100:2", toy.planned(remat="frozen"))
    assert not one.fits and one.measured is not None and one.measured.step_seconds == 0
    text = plan_text.full(one)
    assert "out of memory: 99.000 GB by the compiler; RESOURCE_EXHAUSTED: no" in text
    assert "out of memory" in plan_text.table([one])
    remedy = search.advice(one)
    assert remedy.startswith("what would make it fit, by estimate")
    assert search.settings(one.run) not in remedy


def test_the_best_by_estimate_are_measured_and_ranked_by_it(gpus):
    seconds = iter((3.0, None, 2.0))

    def answer(run):
        one = next(seconds)
        return REFUSED if one is None else took(one)

    asked = gpus(answer)
    tried = plans("h100:2", toy.planned(), fit=3)
    estimates = search.ranked(toy.planned(), chips.topology("h100:2"))
    assert asked == [one.run for one in estimates[:3]]
    assert [one.run for one in tried[:3]] == [asked[2], asked[0], asked[1]]
    assert [one.fits for one in tried[:3]] == [True, True, False]
    assert all(one.measured is None for one in tried[3:]) and len(tried) == search.SHOWN


def test_measuring_goes_on_until_something_fits_but_not_for_ever(gpus):
    asked = gpus(lambda run: REFUSED)
    plans("h100:2", toy.planned(), fit=2)
    assert len(asked) == 4


def test_estimate_only_looks_for_no_gpus(monkeypatch):
    monkeypatch.setattr(gpus_lib, "local_gpus", None)
    assert plans("h100:2", toy.planned(), estimate_only=True)[0].note == ""


def test_features_from_a_cache_cost_no_encoder():
    run = toy.planned()
    cached = dataclasses.replace(run, data=dataclasses.replace(run.data, features=True))
    parts, fewer = flops.step_flops(run).parts, flops.step_flops(cached).parts
    assert parts["image encoder"].needed > 0 and fewer["image encoder"].needed == 0
    assert {k: v for k, v in parts.items() if k != "image encoder"} == {
        k: v for k, v in fewer.items() if k != "image encoder"
    }


def test_the_smallest_memory_that_trains_is_under_24_gb_by_estimate():
    """The target, beside an independent count by hand: GB of weights, state and gradients."""
    run = schema.Config(
        schema.FrozenFiles("", "", "", ""),
        model=schema.ModelConfig(dtype="bfloat16"),
        data=schema.DataConfig(speech_rows=1, speechless_rows=0, speech_frames=1250),
        train=schema.TrainConfig(remat="full", frozen_dtype="int8"),
    )
    (one,) = plans("l4:1", run, estimate_only=True)
    D, F, L, d, f = 4096, 11264, 32, 1024, 2816
    backbone = L * (4 * D * D + 3 * D * F) + D * 32000
    depth = 8 * (6 * (4 * d * d + 3 * d * f) + D * d + d * 2048)
    tables = 32001 * D + 16 * 2049 * D + 32001 * d + 7 * 2049 * d
    frozen = backbone + depth + 2 * (tables + 411.7e6)  # the encoder's matrices
    state = 4 * 206_184_448 * 4  # parameters, gradients, two moments, in float32
    kept = L * 1250 * D * 2  # the residual stream of every layer
    assert one.memory["frozen weights"] == pytest.approx(frozen, rel=0.003)
    lives = sum(one.memory[part] for part in ("adapters", "optimizer", "gradients"))
    assert lives == pytest.approx(state, rel=1e-3)
    assert one.memory["kept activations"] == kept
    assert frozen + state + kept < one.peak_hbm < 1.05 * (frozen + state + kept)
    assert one.fits and one.peak_hbm < 24e9


def command(*words: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"XLA_FLAGS": ""}
    del environment["JAX_PLATFORMS"]  # as a user's
    return subprocess.run(
        [sys.executable, "-m", "mvjax", "plan", "experiments/digits.py", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="there is a GPU here")
def test_the_command_without_a_gpu_estimates_and_says_that_none_is_here():
    done = command("--topology", "h100:1")
    assert done.returncode == 0, done.stderr
    compiled = gpu_targets.installed()
    assert ("not measured: no GPU is here that jax can use" in done.stdout) != compiled
    assert ("compiled in" in done.stdout) == compiled
    assert compiled or done.stderr == ""
