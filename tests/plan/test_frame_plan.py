"""The plan of a frame: what must be read, what was compiled, how many conversations fit."""

import dataclasses
import re

import jax
import pytest
import toy

from mvjax import cli, tree, types
from mvjax.plan import frame_plan, frame_text
from mvjax.runtimes.jax import frame_cost
from mvjax.train import chips

L4 = chips.topology("l4:1")


def frame(rows: int, *, moved: float, each: float, stays: float = 1e9) -> frame_plan.Frame:
    """As compiled: bytes moved by the first conversation and by each more."""
    needed = frame_plan.Needed(moved / 2, 0.0, rows * each / 2, rows * each / 2)
    memory = {"weights": 10e9, "KV caches": rows * stays, "images": 0.0, "temporaries": 0.0}
    bytes_moved = moved + (rows - 1) * each
    peak = sum(memory.values())
    return frame_plan.Frame(
        rows, memory, peak, peak <= L4.usable_hbm, needed, bytes_moved, 1e9,
        bytes_moved / L4.chip.hbm_bandwidth,
    )  # fmt: skip


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row, by its name."""
    split = (re.split(r" {2,}", line.strip()) for line in text.splitlines() if line)
    return {name: cells for name, *cells in split}


def planned(monkeypatch, **sizes) -> tuple[frame_plan.FramePlan, list[int]]:
    tried = []

    def compiled(run, topology, rows, *, cache, stored):
        tried.append(rows)
        return frame(rows, **sizes)

    monkeypatch.setattr(frame_plan, "frame", compiled)
    return frame_plan.plan(toy.planned(), L4, cache=None), tried


def test_a_device_holds_what_memory_and_deadline_allow(monkeypatch):
    spare = types.FRAME_SECONDS * L4.chip.hbm_bandwidth - 15e9
    one, tried = planned(monkeypatch, moved=15e9, each=0.1e9)
    assert tried == [1, 12] and one.many.rows == one.holds == one.by_memory == 12
    assert one.by_deadline == 1 + int(spare / 0.1e9)
    one, tried = planned(monkeypatch, moved=15e9, each=2e9)
    assert one.holds == one.by_deadline == one.many.rows == 1 + int(spare / 2e9)
    one, tried = planned(monkeypatch, moved=25e9, each=2e9)  # not even one in time
    assert tried == [1] and one.holds == 0
    said = frame_text.full([one])
    assert rows(said)["fit by memory"] == ["12"] and rows(said)["a device holds"] == ["0"]
    assert rows(said)["devices for 1,000"] == ["-"]
    one, _ = planned(monkeypatch, moved=15e9, each=1e9, stays=13e9)  # nor in memory
    assert one.holds == 0 and "not one conversation fits" in frame_text.full([one])


def test_more_than_fit_are_tried_with_fewer(monkeypatch):
    """Compiled, two conversations move more than was needed of the first."""

    def compiled(run, topology, rows, *, cache, stored):
        return frame(rows, moved=15e9, each=1e9 if rows == 1 else 2e9)

    monkeypatch.setattr(frame_plan, "frame", compiled)
    one = frame_plan.plan(toy.planned(), L4, cache=None)
    assert one.holds == one.many.rows == 5 and one.many.seconds <= types.FRAME_SECONDS
    found = rows(frame_text.full([one, dataclasses.replace(one, stored="int8", by_memory=2)]))
    assert found["KV caches in"] == ["float32", "int8"]
    assert found["conversations, KV caches in"] == [
        "1, float32",
        "5, float32",
        "1, int8",
        "5, int8",
    ]
    assert found["devices for 1,000"] == ["200", "500"]
    assert found["devices for 1,000,000"] == ["200,000", "500,000"]


def test_what_is_needed_counts_shared_weights_in_every_layer_and_no_table():
    run = toy.planned()
    config = run.model
    params = jax.eval_shape(lambda: toy.params(config))
    arguments = frame_cost.arguments(config, rows=2, params=params)
    needed = frame_plan._needed(config, arguments)
    coded = frame_cost.arguments(config, rows=2, params=params, stored="int8")
    D = config.backbone.width
    layers, itemsize = config.backbone.layers, 4  # float32
    shared = (layers - 1) * 2 * D * D  # q and out of cross-attention
    assert needed.again == shared * itemsize
    assert needed.caches == 2 * 2 * layers * config.backbone.window * D * itemsize
    values, heads = needed.caches / itemsize, D // config.backbone.heads
    assert frame_plan._needed(config, coded).caches == values + 4 * values / heads  # and scales
    assert needed.images == 2 * 2 * layers * config.siglip.tokens * D * itemsize
    read = {
        path: leaf for path, leaf in tree.flatten(params).items()
        if not re.match(r"image/|xa/[kv]/", path) and "_emb/" not in path
    }  # fmt: skip
    d = config.depformer  # each of its steps has the norms
    norms = (config.codebooks_out - 1) * d.layers * 2 * d.width * itemsize
    once = frame_plan._stored(tree.unflatten(read), config)
    assert needed.weights == once + norms


@pytest.mark.slow
def test_a_frame_compiled_for_a_tpu_is_read_and_cached(tmp_path):
    pytest.importorskip("libtpu")
    run = dataclasses.replace(toy.planned(), model=toy.QUANTIZABLE)
    one = frame_plan.frame(run, chips.topology("v6e:1x1"), 1, cache=tmp_path)
    once = one.needed.total - one.needed.again  # what layers share may stay on the chip
    assert one.fits and once <= one.hbm_bytes <= 1.1 * one.needed.total
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    assert frame_plan.frame(run, chips.topology("v6e:1x1"), 1, cache=tmp_path) == one
    assert file.stat().st_mtime_ns == written
    coded = frame_plan.frame(run, chips.topology("v6e:1x1"), 1, cache=None, stored="int8")
    assert coded.needed.caches < 0.3 * one.needed.caches  # of float32
    assert coded.hbm_bytes <= 1.1 * coded.needed.total


def test_a_plan_to_serve_is_of_one_device(capsys, tmp_path):
    words = ["plan", "experiments/digits.py", "--serve", "--topology"]
    assert cli.main([*words, "h100:8"]) == cli.USER_ERROR
    assert "--serve --topology h100:1" in capsys.readouterr().err
    assert cli.main([*words, "h100:1", "--fit"]) == cli.USER_ERROR
    assert "without --fit" in capsys.readouterr().err
