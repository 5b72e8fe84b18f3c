"""`mvjax bench`: statistics, bytes of a frame, what is measured and written; on the toy model."""

import builtins
import json
import math
import sys
from concurrent import futures

import exported
import numpy as np
import pytest

from mvjax import cli
from mvjax.commands import bench_models
from mvjax.export import random_model
from mvjax.runtimes import interface
from mvjax.serve import bench, bench_report, machine, timing
from mvjax.train import frozen_dtype

SETTINGS = bench.Settings(frames=5, slots=(1, 2), late=9)


def test_latency_of_a_conversation():
    told = timing.latency([0.01] * 97 + [0.5, 0.02, 0.09])
    assert (told.frames, told.missed, told.worst_frame, told.deficit) == (100, 2, 97, 2)
    assert told.p50 == pytest.approx(10) and told.maximum == pytest.approx(500)
    assert told.p50 <= told.p95 <= told.p99 <= told.maximum
    # 100 ms each: a fifth of the frames is still to be answered when the last one comes
    assert timing.latency([0.1] * 100).deficit == 20
    assert timing.latency([0.079] * 50).deficit == 0


@pytest.fixture(scope="module", params=["torch", "mlx"])
def opened(request, tmp_path_factory):
    pytest.importorskip("mlx.core" if request.param == "mlx" else "torch")
    _, folder = exported.write(exported.TOY, request.param, tmp_path_factory.mktemp("export"))
    return bench_models.exported(folder, None)


def test_what_is_measured(opened):
    measured = bench.measure(opened.model, SETTINGS)
    cases = [(case.slots, case.position, case.image) for case in measured.cases]
    alone = [(1, 0, True), (1, 0, False), (1, 9, True), (1, 9, False)]
    assert cases == [*alone, (2, 0, True), (2, 9, True)]
    for case in measured.cases:
        assert len(case.seconds) >= 5 and min(case.seconds) > 0
        assert case.latency == timing.latency(case.seconds)
    assert measured.first.keys() == {1, 2} and measured.depth is not None
    assert 0 <= measured.depth <= 1 and (measured.memory is None or measured.memory > 1e7)
    added = bench_report.picture(measured)
    assert added.keys() == {0, 9}


def test_bytes_of_a_frame(opened):
    c, values = exported.TOY, opened.values
    D, d, L = c.backbone.width, c.depformer.width, c.backbone.layers
    depth = c.depformer.layers * (4 * d * d + 3 * d * c.depformer.hidden) + d * (D + c.audio_vocab)
    spine = L * (4 * D * D + 3 * D * c.backbone.hidden) + D * c.text_vocab
    assert values.weights == spine + c.codebooks_out * depth
    assert values.cross == 2 * D * D + L * 2 * D * c.cross_attention.gate.hidden
    assert (values.past, values.image) == (2 * D * L, 2 * D * L * c.siglip.tokens)
    case = bench.Case(2, True, 0, timing.latency([0.1]), [0.1])
    want = values.weights + values.cross + 2 * (4 * values.past + values.image)
    assert opened.needed(case, frames=8) == 4 * want


def test_a_jump_is_as_if_the_frames_had_passed(opened):
    """The next frames have the position of that many steps, whose ids were 0."""
    model = opened.model
    jumped, stepped = model.slots(1), model.slots(1)
    for slots in (jumped, stepped):
        slots.join()
    zeros = interface.Turn(np.zeros(2, np.int32), 0, np.zeros(3, np.int32))
    for _ in range(20):  # four times the context
        stepped.step({0: zeros})
    jumped.skip(0, 20)
    for _ in range(exported.TOY.backbone.window):
        jumped.step({0: zeros})
    stepped_on = [stepped.step({0: zeros})[0] for _ in range(3)]
    jumped_on = [jumped.step({0: zeros})[0] for _ in range(3)]
    for one, other in zip(stepped_on, jumped_on):
        assert one.text_token == other.text_token and one.audio_codes is not None


def test_random_weights_keep_the_variance_of_activations():
    leaves = random_model.leaves(random_model.SIZES["tiny"], "float32")
    for path, leaf in leaves.items():
        if (axes := frozen_dtype.contracted(path)) is not None:
            inputs = math.prod(leaf.shape[axis] for axis in axes)
            assert 0.95 < np.std(leaf[()]) * inputs**0.5 < 1.05, path


def test_the_command_writes_and_replaces_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(random_model.SIZES, "tiny", exported.TOY)
    words = ["bench", "--random", "tiny", "--runtime", "torch", "--frames", "10"]
    words += ["--kv-cache", "int8", "--out", str(tmp_path)]
    pytest.importorskip("torch")
    monkeypatch.setattr(bench_report, "_stamp", lambda: "now")
    assert cli.main(words) == 0 and cli.main(words) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"bench-tiny-now{n}.{kind}" for n in ("", "-2") for kind in ("json", "svg")}
    told = json.loads((tmp_path / "bench-tiny-now.json").read_text())
    assert told["machine"]["cpu"] and "numpy" in told["machine"]["versions"]
    (result,) = told["results"]
    assert result["runtime"] == "torch" and result["bandwidth"] > 1e8
    assert all(0 < share < math.inf for share in result["share_of_limit"])
    assert result["dtype"] == "float32, int8 KV cache" and result["cache_effect"]["rms"]["text"] > 0
    out = capsys.readouterr().out
    for word in (
        "p99",
        "blind",
        "the picture adds",
        "depth transformer",
        "GB/s",
        "codec not measured",
        "its KV cache beside one in float32, over 7 frames",
    ):
        assert word in out, word


def test_without_matplotlib_the_plot_is_said_to_be_missing(tmp_path, monkeypatch):
    real = builtins.__import__

    def no_matplotlib(name, *rest):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError("no", name="matplotlib")
        return real(name, *rest)

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    path, said = bench_report.save({}, [], tmp_path, "x")
    assert path.endswith(".json") and "pip install 'mvjax[train]'" in said


def test_results_of_one_second_are_all_kept(tmp_path, monkeypatch):
    """Also a plot that lies there without its JSON."""
    monkeypatch.setattr(bench_report, "_stamp", lambda: "now")
    monkeypatch.setattr(bench_report, "plot", lambda results: b"a plot")
    (tmp_path / "x-now.svg").write_text("mine")
    (tmp_path / "x-now-3.json").write_text("mine")
    with futures.ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda _: bench_report.save({}, [], tmp_path, "x"), range(16)))
    assert len({path for both in saved for path in both}) == 32
    assert (tmp_path / "x-now.svg").read_text() == "mine" == (tmp_path / "x-now-3.json").read_text()
    assert len(list(tmp_path.iterdir())) == 34


def test_what_cannot_be_measured_is_said(tmp_path, capsys):
    assert cli.main(["bench"]) == 2
    assert "expected DIR or --random SIZE" in capsys.readouterr().err
    assert cli.main(["bench", str(tmp_path)]) == 2
    assert "mvjax export" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main(["bench", "--random", "7b", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "file is a file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["bench", "--random", "tiny", "--slots", "0"])
    assert "expected numbers such as 1,2,4,8" in capsys.readouterr().err


def test_the_machine_has_a_name_and_memory():
    about = machine.about()
    assert about["cpu"] and about["memory_gb"] > 0.5 and about["threads"] >= 1
    assert machine.memory_bandwidth() > 1e8
