"""The tool that measures one GPU: what it chooses, how it reports, and (long) a run of it on a CPU."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvjax.config import text as config_text
from mvjax.train import chips, flops

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "bench_gpu.py"
H200 = "NVIDIA H200"
# what a machine with jax may lack: the tool and all its processes run without
ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"grain", "array_record", "tyro", "torchao", "msgspec"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""
EXPERIMENT = """
import toy

def config():
    return toy.planned()
"""
TOOK = {
    "device_kind": H200, "devices": 1, "fits": True, "step_seconds": 0.8, "peak_memory": 70.5e9,
    "memory_source": "device", "compile_seconds": 90.0, "steps": 10, "loss": 11.0, "error": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("bench_gpu", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(**fields) -> argparse.Namespace:
    values = {
        "experiment": ROOT / "experiments" / "moshika_vis.py", "rows": [1, 4, 16], "tries": 2,
        "speech_only": False, "remat": None,
    }  # fmt: skip
    return argparse.Namespace(**(values | fields))


def test_what_fits_is_tried_the_fastest_first(tool):
    settings = tool.promising(arguments(), H200, "bfloat16")
    assert len(settings) == 2 and all(settings)
    runs = [tool.override(tool.experiment(arguments()), words) for words in settings[0]]
    assert {run.data.speechless_rows / run.data.speech_rows for run in runs} == {3}
    assert len({run.train.remat for run in runs}) == len(runs)
    assert {run.train.frozen_dtype for run in runs} == {"bfloat16"}
    alone = tool.promising(arguments(speech_only=True, remat=["full"], rows=[2]), H200, "int8")
    ((words,),) = alone
    assert "data.speechless_rows=0" in words and 'train.remat="full"' in words
    assert tool.promising(arguments(rows=[16], remat=["none"]), "NVIDIA L4", "bfloat16") == []


def test_the_limit_is_that_of_the_frozen_matmuls(tool):
    run = config_text.load_experiment(arguments().experiment)
    kernels = 32 * (4 * 4096**2 + 3 * 4096 * 11264) + 4096 * 32000
    assert tool.limit_flops(run) == 4 * kernels


def test_a_report_states_batch_length_and_rates(tool, capsys):
    words = (*tool.rows_words(4, 12), *tool.kind_words("bfloat16", "attention"))
    result = tool.report(arguments(), TOOK, words, H200)
    text = capsys.readouterr().out
    assert text.startswith("bfloat16 frozen, 4 x 1250 frames + 12 x 512 tokens, remat attention: ")
    run = tool.override(tool.experiment(arguments()), words)
    rate = (4 * 1250 + 12 * 512) / 0.8
    peak = chips.CHIPS["h200"].peak_flops
    assert result["frames_per_second"] == pytest.approx(rate) and f"{rate:,.0f} frames/s" in text
    assert result["mfu"] == pytest.approx(flops.step_flops(run).model_flops / 0.8 / peak)
    assert result["share_of_limit"] == pytest.approx(rate * tool.limit_flops(run) / peak)
    assert "70.50 GB by the device" in text


def test_what_does_not_fit_is_reported_with_its_figure(tool, capsys):
    words = (*tool.rows_words(16, 48), *tool.kind_words("bfloat16", "none"))
    refused = TOOK | {
        "fits": False,
        "peak_memory": 200e9,
        "memory_source": "compiler",
        "error": "no",
    }
    result = tool.report(arguments(), refused, words, H200)
    assert result["frames_per_second"] is None
    assert "does not fit (200.00 GB by the compiler): no" in capsys.readouterr().out


def test_serving_is_reported_beside_its_limit_and_what_is_published(capsys):
    spec = importlib.util.spec_from_file_location("bench_serving", TOOL.parent / "bench_serving.py")
    assert spec and spec.loader
    serving = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(serving)
    cases = [
        {"slots": 1, "image": True, "position": 0, "latency": {"p50": 9.5, "p99": 11.0}},
        {"slots": 1, "image": False, "position": 0, "latency": {"p50": 8.0, "p99": 9.0}},
        {"slots": 8, "image": True, "position": 0, "latency": {"p50": 20.0, "p99": 21.0}},
    ]
    measured = {
        "dtype": "bfloat16",
        "measured": {"cases": cases},
        "share_of_limit": [0.5, 0.8, 0.7],
    }
    told = serving.report("jax bfloat16", measured, "7b")
    text = capsys.readouterr().out
    assert [row["p50_ms"] for row in told["cases"]] == [9.5, 8.0, 20.0]
    assert "9.50 ms (p99 11.00), 2.00 x the limit, misses 1.5; published elsewhere: 28 ms" in text
    assert "1.25 x the limit, meets 1.5" in text and "published elsewhere: 33 ms" in text
    assert "the picture adds 1.50 ms, misses 1 ms" in text


def run_tool(folder: Path, *words: str) -> subprocess.CompletedProcess:
    (folder / "sitecustomize.py").write_text(ABSENT)
    paths = os.pathsep.join((str(folder), str(ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles sooner
    command = [sys.executable, str(TOOL), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_without_a_gpu_it_says_so(tmp_path):
    done = run_tool(tmp_path)
    assert done.returncode == 2 and "no GPU is here that jax can use" in done.stdout, done.stderr


@pytest.mark.slow
def test_the_tool_runs_a_small_model_on_a_cpu(tmp_path):
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    out = tmp_path / "results.json"
    done = run_tool(
        tmp_path, "--cpu", "--only", "speed", "memory",
        "--experiment", "experiment.py", "--rows", "1", "2", "--tries", "1",
        "--frozen", "int8", "--steps", "3", "--json", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "best in int8" in done.stdout and "smallest memory" in done.stdout
    fast, small = json.loads(out.read_text())["results"]
    assert fast["fits"] and fast["step_seconds"] > 0 and fast["mfu"] is None
    assert small["fits"] and 0 < small["peak_memory"] < fast["peak_memory"]
