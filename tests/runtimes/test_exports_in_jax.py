"""Exports in PyTorch's layout run and are planned in JAX, too."""

import dataclasses

import exported as exports
import jax
import numpy as np
import pytest
import toy

from mvjax import cli, gates, scopes
from mvjax.commands import plan
from mvjax.plan import frame_plan
from mvjax.runtimes.jax import exported
from mvjax.runtimes.jax import model as jax_model
from mvjax.train import chips

OTHER = dataclasses.replace(
    exports.with_adapters(
        gate=gates.Constant("tanh"),
        share_gate=True,
        dim=18,
        layers=(0, 2),
        scope=scopes.Scope(2, None),
        image_norm="mean_square",
    ),
    backbone=dataclasses.replace(toy.EXPORTED.backbone, rope_base=500.0),
    depformer=dataclasses.replace(toy.EXPORTED.depformer, norm="variance"),
)


@pytest.mark.parametrize("config", [exports.TOY, OTHER, exports.with_adapters(gate=None)])
def test_the_config_is_read_from_the_folder(config, tmp_path):
    _, folder = exports.write(config, "torch", tmp_path)
    assert exported.read_config(folder) == config
    _, folder = exports.write(config, "torch", tmp_path, dtype="bfloat16")
    assert exported.read_config(folder) == dataclasses.replace(config, dtype="bfloat16")


def test_it_holds_the_weights_that_the_run_holds(tmp_path):
    params, folder = exports.write(exports.TOY, "torch", tmp_path)
    model = exported.open_model(folder, kv_cache="int8")
    other = jax_model.JaxModel(exports.TOY, params)
    assert (model.config, model.kv_cache, model.scope) == (other.config, "int8", other.scope)
    for held in ("weights", "_image_params"):
        jax.tree.map(np.testing.assert_array_equal, getattr(model, held), getattr(other, held))
    weights = folder / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-9] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(ValueError, match="model.safetensors"):
        exported.open_model(folder)


def test_an_export_is_planned_or_refused_with_the_remedy(tmp_path, monkeypatch, capsys):
    _, folder = exports.write(exports.TOY, "torch", tmp_path)
    planned = []

    def frame(run, topology, rows, *, cache, stored):
        planned.append((run, stored))
        empty = frame_plan.Needed(0.0, 0.0, 0.0, 0.0)
        memory = {"KV caches": 1.0, "images": 0.0}
        return frame_plan.Frame(rows, memory, 1e12, False, empty)

    monkeypatch.setattr(frame_plan, "frame", frame)
    monkeypatch.setattr(plan, "read_topologies", lambda names, measured: [chips.topology("l4:1")])
    words = ["plan", "--serve", "--topology", "l4:1"]
    assert cli.main([*words, str(folder), "--set", "model.dtype=bfloat16"]) == 1
    model = dataclasses.replace(exports.TOY, dtype="bfloat16")
    assert [(run.model, stored) for run, stored in planned] == [(model, None), (model, "int8")]
    out = capsys.readouterr().out
    assert "not one conversation fits" in out and "1, bfloat16" in out and "1, int8" in out

    def refusal(folder) -> str:
        assert cli.main([*words, str(folder)]) == cli.USER_ERROR
        return capsys.readouterr().err

    _, candle = exports.write(exports.TOY, "candle", tmp_path)
    assert "export with --target torch" in refusal(candle)
    assert "or, with --serve, that of an export" in refusal(tmp_path)
    weights = folder / "model.safetensors"
    weights.rename(folder / "gone")
    assert "model.safetensors: missing; export again" in refusal(folder)


def test_serving_an_export_in_jax_takes_no_other_quantization(tmp_path, capsys):
    _, folder = exports.write(exports.TOY, "torch", tmp_path)
    words = ["talk", str(folder), "--runtime", "jax", "--text", "x", "--out", f"{tmp_path}/x.wav"]
    assert cli.main([*words, "--quantize", "int8"]) == cli.USER_ERROR
    assert "leave out --quantize or --runtime jax" in capsys.readouterr().err
