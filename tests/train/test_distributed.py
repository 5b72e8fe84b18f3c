"""What one process can show; several real ones are in test_survival.py and test_launch.py."""

import os
import threading

import jax
import numpy as np
import processes
import pytest
import toy

from mvjax.config import schema
from mvjax.train import distributed, sharding

# a shell that `salloc` or `srun --pty` opened within a job of four tasks
INTERACTIVE = {"SLURM_STEP_NODELIST": "a1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}


def mesh(*sizes):
    return sharding.make_mesh(schema.MeshConfig(*sizes))


@pytest.fixture
def environment(monkeypatch):
    """Sets variables; jax.distributed only notes how it would have been started."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(distributed, "_tpu_chips", lambda: False)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)

    def set_all(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with distributed.session():
            pass
        return calls

    return set_all


def test_one_process_needs_nothing(environment):
    assert environment() == []
    assert distributed.name() == ""


def test_three_variables(environment):
    calls = environment(MVJAX_COORDINATOR="10.0.0.1:1234", MVJAX_PROCESSES="4", MVJAX_PROCESS="3")
    arguments, options = calls[0]
    assert arguments == ("10.0.0.1:1234", 4, 3) and calls[1] == "shutdown"
    assert options == {"cluster_detection_method": "deactivate"}  # not what SLURM would say


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MVJAX_PROCESSES": "2"}, "MVJAX_COORDINATOR is not set; MVJAX_PROCESS is not set"),
        (
            {"MVJAX_COORDINATOR": "here", "MVJAX_PROCESSES": "two", "MVJAX_PROCESS": "0"},
            "expected host:port, got 'here'; MVJAX_PROCESSES: expected a number, got 'two'",
        ),
        (
            {"MVJAX_COORDINATOR": "a:1", "MVJAX_PROCESSES": "2", "MVJAX_PROCESS": "2"},
            "MVJAX_PROCESS: expected a number below MVJAX_PROCESSES=2, got 2",
        ),
    ],
)
def test_variables_that_make_no_sense(environment, variables, message):
    with pytest.raises(ValueError, match=message):
        environment(**variables)


@pytest.mark.parametrize(
    ("variables", "joins", "count"),
    [
        ({"SLURM_STEP_NODELIST": "a[1-2]", "SLURM_NTASKS": "2"}, True, 2),
        ({"SLURM_STEP_NODELIST": "a1", "SLURM_NTASKS": "1"}, False, None),
        ({"SLURM_NTASKS": "2"}, False, None),  # the batch script
        ({**INTERACTIVE, "SLURM_STEP_NUM_TASKS": "1"}, False, None),
        ({**INTERACTIVE, "SLURM_STEP_NUM_TASKS": "2"}, True, 2),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True, None),
    ],
)
def test_launchers_that_jax_knows(environment, variables, joins, count):
    expected = [((), {"num_processes": count}), "shutdown"] if joins else []
    assert environment(**variables) == expected


def test_an_interactive_step_on_a_tpu_host_is_one_process(environment, monkeypatch):
    monkeypatch.setattr(
        distributed, "_tpu_chips", lambda: True
    )  # jax would find SLURM's four tasks
    assert environment(**INTERACTIVE, SLURM_STEP_NUM_TASKS="1") == []


def test_after_an_error_no_farewell(environment, monkeypatch):
    calls = environment(MVJAX_COORDINATOR="a:1", MVJAX_PROCESSES="2", MVJAX_PROCESS="1")
    calls.clear()
    with pytest.raises(KeyError), distributed.session():
        raise KeyError
    assert "shutdown" not in calls


def test_a_tpu_of_one_machine_is_one_process(environment, monkeypatch):
    def alone(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(distributed, "_tpu_chips", lambda: True)
    assert environment() == [((), {}), "shutdown"]
    monkeypatch.setattr(jax.distributed, "initialize", alone)
    assert environment()[2:] == []


def test_a_batch_of_one_process():
    data = schema.DataConfig(speech_rows=4, speechless_rows=0, speech_frames=9, speechless_tokens=7)
    batch = toy.Data(data)[3]
    feed = distributed.BatchFeed(mesh(2, 2, 2))
    assert (feed.index, feed.count) == (0, 1)
    placed = feed(batch)
    jax.tree.map(np.testing.assert_array_equal, placed, batch)
    assert placed.speech.codes.sharding == sharding.rows(mesh(2, 2, 2))


class Device:
    """Stands for a device of some process."""

    def __init__(self, process):
        self.process_index = process


def parts(monkeypatch, processes, rows):
    """How processes share rows, when device i is of processes[i] and holds row block rows[i]."""

    class Placed:
        def devices_indices_map(self, _):
            return {Device(p): (slice(r, r + 1),) for p, r in zip(processes, rows, strict=True)}

    monkeypatch.setattr(sharding, "rows", lambda _: Placed())
    found = []
    for process in sorted(set(processes)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        feed = distributed.BatchFeed(mesh(max(rows) + 1, 1, -1))
        found.append((feed.index, feed.count, feed.shards))
    return found


def test_who_reads_what(monkeypatch):
    # rows in the order of processes; not in it; a tensor axis within, and across, processes
    assert parts(monkeypatch, [0, 0, 1, 1], [0, 1, 2, 3]) == [(0, 2, (0, 1)), (1, 2, (2, 3))]
    assert parts(monkeypatch, [1, 0, 1, 0], [0, 1, 2, 3]) == [(1, 2, (1, 3)), (0, 2, (0, 2))]
    assert parts(monkeypatch, [0, 0, 1, 1], [0, 0, 1, 1]) == [(0, 2, (0,)), (1, 2, (1,))]
    assert parts(monkeypatch, [0, 1, 2, 3], [0, 0, 1, 1]) == [
        (0, 2, (0,)), (0, 2, (0,)), (1, 2, (1,)), (1, 2, (1,)),
    ]  # fmt: skip


def test_rows_that_are_shared_in_part(monkeypatch):
    with pytest.raises(ValueError, match="choose a tensor axis"):
        parts(monkeypatch, [0, 0, 1, 1], [0, 1, 1, 1])


TWO = """
import sys, jax, numpy as np, toy
from mvjax.train import distributed, sharding
with distributed.session():
    devices = jax.devices()
    for order, shape in (((2, 0, 3, 1), (4, 1, 1)), ((0, 2, 1, 3), (2, 1, 2))):
        mesh = jax.sharding.Mesh(np.array([devices[i] for i in order]).reshape(shape), sharding.AXES)
        feed = distributed.BatchFeed(mesh)
        rows = np.arange(8 * 3).reshape(8, 3).astype(np.float32)
        size = len(rows) // shape[0]
        local = np.concatenate([rows[i * size : (i + 1) * size] for i in feed.shards])
        whole, none = feed((local, np.zeros((0, 3), np.uint8)))
        assert whole.shape == (8, 3) and none.shape == (0, 3)
        for shard in whole.addressable_shards:
            np.testing.assert_array_equal(shard.data, rows[shard.index])
        print("RESULT", feed.index, feed.count, *feed.shards)
"""


def test_rows_land_where_their_devices_are_whatever_the_order_of_processes(tmp_path):
    """Blocks of rows alternate between two processes; then both hold all rows, by a tensor axis."""
    lines = [out.split("RESULT ")[1:] for out in processes.run(TWO, tmp_path, count=2, devices=2)]
    assert [[line.split() for line in two] for two in lines] == [
        [["1", "2", "1", "3"], ["0", "1", "0", "1"]],
        [["0", "2", "0", "2"], ["0", "1", "0", "1"]],
    ]


def test_agreement_of_one():
    assert distributed.from_first(lambda: {"a": [1]}) == {"a": [1]}
    assert distributed.anywhere(True) and not distributed.anywhere(False)
    with pytest.raises(OSError, match="disk"):
        distributed.from_first(lambda: (_ for _ in ()).throw(OSError("disk")))
    stop = distributed.Request(mesh(-1, 1, 1), threading.Event())
    assert not stop.granted()
    stop.wished.set()
    assert stop.granted()


def test_the_answer_of_several_is_a_step_late(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    stop = distributed.Request(mesh(2, 2, 2), threading.Event())
    answers = []
    for step in range(5):
        if step == 2:
            stop.wished.set()
        answers.append(stop.granted())
    assert answers == [False, False, False, True, True]
