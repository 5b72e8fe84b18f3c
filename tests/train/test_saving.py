import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvjax.train import checkpoint, saving, step

META = {"frozen": {}}


def state(number: int) -> step.TrainState:
    adapters = {"xa": {"kernel": jnp.full((300, 40), number + 0.5)}}
    return step.init_state(adapters, optax.adamw(1e-3))._replace(step=jnp.int32(number))


def saver(root, said, **fields):
    return saving.CheckpointSaver(
        root, keep=2, **{"max_failed": 3, "saved": 0, "say": said.append, **fields}
    )


def steps(root):
    return sorted(int(folder.name) for folder in root.iterdir() if folder.suffix == "")


@pytest.fixture
def full_disk(monkeypatch):
    """A switch."""
    usage, full = checkpoint.shutil.disk_usage("/"), threading.Event()
    answer = lambda _: usage._replace(free=1000) if full.is_set() else usage  # noqa: E731
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", answer)
    return full


def test_the_state_may_be_donated_at_once(tmp_path):
    train = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 7, s), donate_argnums=0)
    saved, said = state(4), []
    expected = jax.tree.map(np.array, saved)
    with saver(tmp_path, said) as saves:
        saves.save(saved, META)
        changed = train(saved)
        assert int(changed.adapters["xa"]["kernel"][0, 0]) == -7
        saves.settle()
        assert saves.saved == 4
    found = checkpoint.newest(tmp_path)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), changed
    )
    jax.tree.map(np.testing.assert_array_equal, checkpoint.read(found, like), expected)
    assert said == []


def test_training_goes_on_while_files_are_written_and_only_one_is_in_flight(tmp_path, monkeypatch):
    gate, order = threading.Event(), []
    commit = saving.PendingCheckpoint.commit

    def slow(pending):
        assert gate.wait(60)
        order.append(f"written {pending.step}")
        return commit(pending)

    monkeypatch.setattr(saving.PendingCheckpoint, "commit", slow)
    with saver(tmp_path, []) as saves:
        saves.save(state(4), META)
        order.append("trains")
        assert not checkpoint.exists(tmp_path)
        threading.Timer(0.3, gate.set).start()
        saves.save(state(8), META)  # waits for the one before
        assert order[:2] == ["trains", "written 4"] and saves.saved == 4
        saves.finish(state(8), META)
    assert order == ["trains", "written 4", "written 8"] and steps(tmp_path) == [4, 8]


def test_failed_saves_are_said_and_counted_in_a_row(tmp_path, full_disk):
    said = []
    with saver(tmp_path, said) as saves:
        saves.save(state(4), META)
        saves.settle()
        full_disk.set()
        saves.save(state(5), META)
        saves.save(state(6), META)
        assert "step 6" in said[1] and "the disk has 1,000 free" in said[1]
        assert "2 failed in a row, it stops at 3" in said[1] and "00000004" in said[1]
        full_disk.clear()
        saves.save(state(7), META)
        full_disk.set()
        for number in (8, 9):
            saves.save(state(number), META)
        assert saves.saved == 7 and len(said) == 4
        with pytest.raises(ValueError, match="cannot write the checkpoint of step 10"):
            saves.save(state(10), META)
    assert steps(tmp_path) == [4, 7]


def test_the_last_state_must_be_saved(tmp_path, full_disk):
    with saver(tmp_path, []) as saves:
        full_disk.set()
        with pytest.raises(ValueError, match="checkpoint of step 12"):
            saves.finish(state(12), META)
        full_disk.clear()
        saves.finish(state(12), META)
        saves.finish(state(12), META)
    assert steps(tmp_path) == [12]
    with saver(tmp_path / "none", [], saved=3) as saves:  # nothing was trained
        saves.finish(state(3), META)
    assert not (tmp_path / "none").exists()
