"""Where a runtime is not installed: an export is written, its weights are certified, and the rest later."""

import json
import subprocess
import sys
from pathlib import Path

import exported
import pytest

from mvjax import cli, files, run_folder
from mvjax.commands import certify
from mvjax.config import schema
from mvjax.export import certificate, verdict, verify, weight_files
from mvjax.export import folder as export_folder
from mvjax.runtimes import loading
from mvjax.train import load
from mvjax.weights import file_names

PARAMETERS = 51


@pytest.fixture
def run(tmp_path):
    """(parameters, config) whose frozen files exist."""
    params = exported.random_params(size=0.2)
    return params, exported.make_run(tmp_path, exported.TOY, params)


def inputs():
    pixels, user = exported.inputs(104)
    return {"pixels": pixels, "user_codes": user}


@pytest.mark.parametrize(
    ("target", "package", "dtype"),
    [("torch", "torch", None), ("mlx", "mlx.core", None), ("candle", "torch", "bfloat16")],
)
def test_weights_are_certified_and_the_computation_is_not_run(
    target, package, dtype, run, tmp_path, monkeypatch, capsys
):
    out = export_folder.export(*run, target, tmp_path / "out", dtype=dtype)
    exported.absent(monkeypatch, package)
    needed = package.partition(".")[0]
    with pytest.raises(loading.MissingRuntime, match=f"needs '{needed}': .* or take the run"):
        loading.open_folder(out)
    found = certificate.certify(*run, out, target, dtype=dtype, **inputs())
    assert (found["verdict"], found["reasons"]) == ("not run", [])
    assert found["not_run"]["needs"] == needed
    assert found["values"] == {"tensors": PARAMETERS, "not_as_exported": []}
    assert found["frozen"]["sha256_as_stored"] == found["frozen"]["sha256_in_export"]
    assert not {"loss", "max_abs_logit_error", "frames", "served", "runtime"} & found.keys()
    told = verdict.summary(found, command="mvjax certify there --run it")
    assert told.startswith("not run: 51 of 51 parameters") and told.endswith("there --run it")
    card = (out / "README.md").read_text()
    assert "**Certificate: not run: 51 of 51" in card and "mvjax certify DIR --run RUN" in card
    assert verify.report(out) == 0
    shown = capsys.readouterr().out
    assert "as certified: not run, " in shown and f": {needed} was not installed" in shown
    written = json.loads((out / "certificate.json").read_text())
    (out / "certificate.json").write_text(json.dumps(written | {"verdict": "pass"}))
    assert "but its numbers say not run" in verify.verify(out)[0][0]


def test_wrong_weights_fail_without_the_runtime(run, tmp_path, monkeypatch):
    params, config = run
    out = export_folder.export(params, config, "torch", tmp_path / "out")
    exported.absent(monkeypatch, "torch")
    changed = exported.random_params(size=0.1)
    found = certificate.certify(changed, config, out, "torch", **inputs())
    assert found["verdict"] == "fail"
    assert "does not hold these parameters of the model" in found["reasons"][-1]
    assert verify.report(out) == 1
    assert "**Certificate: fail:" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("place", "command"),
    [
        ("x", "mvjax certify x --run runs/a@7"),
        ("gs://b/x", "mvjax export runs/a@7 --target torch --dtype bfloat16 --out gs://b/x"),
    ],
)
def test_the_command_that_completes_it_is_one_that_works(place, command, monkeypatch, capsys):
    """Of a store's folder: `certify` takes folders of this machine."""
    missing = {"needs": "torch", "install": "pip install it", "command": ""}
    values = {"tensors": 1, "not_as_exported": []}
    found = {"verdict": "not run", "reasons": [], "values": values, "not_run": missing}
    monkeypatch.setattr(certificate, "certify", lambda *_, **__: found)
    config = schema.Config(schema.FrozenFiles("", "", "", ""), model=exported.TOY)
    trained, how = load.TrainedRun(config, {}, 7), {"dtype": "bfloat16", "quantization": None}
    folder = files.output(place)
    assert certify.write(folder, "torch", trained, Path("runs/a"), frames=None, **how) == 0
    assert capsys.readouterr().out.endswith(f": {command}\n")


@pytest.mark.parametrize("target", ["torch", "mlx", "candle"])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_a_folder_says_how_it_was_stored(target, dtype, run, tmp_path):
    params, config = run
    out = export_folder.export(params, config, target, tmp_path / "out", dtype=dtype)
    kept = None if dtype == "float32" else dtype  # as the toy is trained
    how = weight_files.how_stored(out, params, config.model, target)
    assert how == {"dtype": kept, "quantization": None}


@pytest.mark.parametrize(("target", "how"), [("mlx", "q4"), ("candle", "q8_0")])
def test_a_quantized_folder_says_so(target, how, run, tmp_path):
    params, config = run
    (tmp_path / file_names.QUANTIZED[target][how]).touch()
    found = weight_files.how_stored(tmp_path, params, config.model, target)
    assert found == {"dtype": None, "quantization": how}


def test_certify_refuses_what_is_no_export(tmp_path, capsys):
    for name in (run_folder.CONFIG_JSON, run_folder.CONFIG_TEXT):
        (tmp_path / name).write_text("{}")
    assert cli.main(["certify", str(tmp_path), "--run", str(tmp_path)]) == 2
    assert "is a run folder: export it first" in capsys.readouterr().err
    assert cli.main(["certify", str(tmp_path / "x"), "--run", str(tmp_path)]) == 2
    assert "expected moshika-vis.yaml (torch)" in capsys.readouterr().err


SCRIPT = """
import sys, types
from pathlib import Path
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name="torch")
sys.meta_path.insert(0, Absent())
import numpy as np
from mvjax import tree
from mvjax.digits import stages
from mvjax.eval import model as eval_model
from mvjax.train import load, sharding
plan = stages.plan(Path(sys.argv[1]), short=True)
config = plan.config
params = tree.merge(*load.weights(config, sharding.make_mesh(config.mesh)))
model = eval_model.load(config, params)
rng = np.random.default_rng(0)
picture = rng.integers(0, 256, (48, 48, 3), np.uint8)
samples = [types.SimpleNamespace(id=i, image=lambda: picture) for i in range(2)]
said = lambda: types.SimpleNamespace(user_codes=rng.integers(0, 256, (8, 60)).astype(np.int32))
spoken = {i: types.SimpleNamespace(streams=said()) for i in range(2)}
stages.export(model, types.SimpleNamespace(samples=samples, spoken=spoken), plan)
assert "torch" not in sys.modules
"""


@pytest.mark.slow
def test_the_quickstart_exports_without_torch(tmp_path):
    """PyTorch's folder is written and loads here; MLX's certificate is whole."""
    pytest.importorskip("mlx.core")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()
    found = {
        path.parent.name: json.loads(path.read_text())
        for path in Path(tmp_path).glob("export/*/certificate.json")
    }
    assert {name: one["verdict"] for name, one in found.items()} == {
        "torch": "not run", "mlx": "pass",
    }  # fmt: skip
    assert exported.open_model(tmp_path / "export" / "torch").sizes.image_size == 48
