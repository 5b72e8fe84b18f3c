import gc
import json
import os
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from mvjax import tree
from mvjax.config import schema
from mvjax.train import checkpoint, optim, saving, step


def state(number: int) -> step.TrainState:
    adapters = {
        "xa": {"q": {"kernel": jnp.full((3, 4), number + 0.5), "none": jnp.zeros(())}},
        "norm": {"scale": jnp.arange(5, dtype=jnp.bfloat16)},
    }
    made = step.init_state(adapters, optax.adamw(1e-3))
    return made._replace(step=jnp.int32(number), skipped=jnp.int32(1))


def like(made: step.TrainState) -> step.TrainState:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), made
    )


def save(root: Path, *steps: int, keep: int = 9) -> None:
    for number in steps:
        metadata = {"frozen": {}, "n": number}
        saving.PendingCheckpoint(root, state(number), metadata=metadata, keep=keep).commit()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_round_trip_is_exact(tmp_path):
    save(tmp_path, 7)
    found = checkpoint.newest(tmp_path)
    assert found.folder.name == "00000007" and not found.damaged
    assert found.metadata["step"] == 7 and found.metadata["n"] == 7
    restored = checkpoint.read(found, like(state(7)))
    assert jax.tree.structure(restored) == jax.tree.structure(state(7))
    jax.tree.map(np.testing.assert_array_equal, restored, state(7))
    adapters = checkpoint.read_adapters(found, like(state(7)).adapters)
    jax.tree.map(np.testing.assert_array_equal, adapters, state(7).adapters)


def test_a_mean_is_kept_and_is_what_evaluation_takes(tmp_path):
    made = state(7)
    made = made._replace(ema=jax.tree.map(lambda leaf: leaf + 1, made.adapters))
    saving.PendingCheckpoint(tmp_path, made, metadata={"frozen": {}}, keep=1).commit()
    found = checkpoint.newest(tmp_path)
    restored = checkpoint.read(found, like(made))
    assert jax.tree.structure(restored) == jax.tree.structure(made)
    jax.tree.map(np.testing.assert_array_equal, restored, made)
    mean = checkpoint.read_adapters(found, like(made).adapters)
    jax.tree.map(np.testing.assert_array_equal, mean, made.ema)


def test_the_newest_are_kept(tmp_path):
    save(tmp_path, 2, 4, 10, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000004", "00000010"]
    assert checkpoint.newest(tmp_path).metadata["step"] == 10


def test_the_same_step_again_replaces_it(tmp_path):
    save(tmp_path, 4, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["00000004"]


def test_nothing_there(tmp_path):
    assert not checkpoint.exists(tmp_path / "none")
    with pytest.raises(ValueError, match="found none"):
        checkpoint.newest(tmp_path / "none")


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "empty"])
def test_any_harm_to_any_file_is_seen(tmp_path, harm):
    root = tmp_path / "checkpoints"
    save(root, 4, 8)
    whole = tmp_path / "whole"
    shutil.copytree(root / "00000008", whole)
    for number in range(len(files(whole))):
        shutil.rmtree(root / "00000008")
        shutil.copytree(whole, root / "00000008")
        victim = files(root / "00000008")[number]
        data = bytearray(victim.read_bytes())
        if harm == "remove":
            victim.unlink()
        elif harm == "flip" and victim.name != checkpoint.HASHES:
            data[len(data) // 2] ^= 0x10
            victim.write_bytes(data)
        else:
            os.truncate(victim, 0 if harm == "empty" else len(data) - 1)
        found = checkpoint.newest(root)
        assert found.folder.name == "00000004", victim
        (problem,) = found.damaged.values()
        assert victim.name in problem


def test_set_aside_makes_room(tmp_path):
    save(tmp_path, 4, 8)
    files(tmp_path / "00000008" / "adapters")[0].unlink()
    checkpoint.set_aside(checkpoint.newest(tmp_path).damaged)
    save(tmp_path, 8)
    assert checkpoint.newest(tmp_path).metadata["step"] == 8
    assert (tmp_path / "00000008.damaged").is_dir()


def test_only_damaged_ones_are_all_named(tmp_path):
    save(tmp_path, 4, 8)
    for name in ("00000004", "00000008"):
        (tmp_path / name / checkpoint.HASHES).write_text("{")
    with pytest.raises(ValueError) as error:
        checkpoint.newest(tmp_path)
    message = str(error.value)
    assert "00000004: hashes.json is unreadable" in message and "00000008" in message
    assert "start over" in message


@pytest.mark.parametrize("suffix", ["orbax-checkpoint-tmp", "partial"])
def test_a_leftover_of_a_kill_is_ignored_and_removed(tmp_path, suffix):
    save(tmp_path, 4)
    (tmp_path / f"00000008.{suffix}" / "adapters").mkdir(parents=True)
    assert checkpoint.newest(tmp_path).metadata["step"] == 4
    save(tmp_path, 8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000004", "00000008"]


def test_a_kill_before_the_commit_leaves_no_checkpoint(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.files_lib, "write_atomic", killed)
        save(tmp_path, 4)
    assert (tmp_path / "00000004" / "adapters").is_dir() and not checkpoint.exists(tmp_path)
    save(tmp_path, 4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.files_lib, "write_atomic", killed)
        save(tmp_path, 8, keep=1)
    saved = checkpoint.newest(tmp_path)  # the one before was not removed yet
    assert saved.metadata["step"] == 4
    assert "killed before its commit" in saved.damaged[tmp_path / "00000008"]


def test_leaves_of_the_optimizer_have_names(tmp_path):
    optimizer = optim.make(schema.OptimConfig(warmup_steps=2, spike_factor=3.0), steps=9)
    made = step.init_state(state(0).adapters, optimizer)
    saving.PendingCheckpoint(tmp_path, made, metadata={}, keep=1).commit()
    with ocp.StandardCheckpointer() as checkpointer:
        stored = tree.flatten(checkpointer.restore(tmp_path / "00000000" / "optimizer"))
    params = ("xa/q/kernel", "xa/q/none", "norm/scale")
    assert stored.keys() == {
        *("adam/count", "schedule/count", "spikes/recent_losses", "step", "skipped"),
        *(f"adam/{moment}/{path}" for moment in ("mu", "nu") for path in params),
    }


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write the checkpoint of step 3.*none yet"):
        try:
            save(tmp_path / "file" / "checkpoints", 3)
        except ValueError as error:
            raise ValueError(str(error).replace("\n", " ")) from error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's threads
def test_a_write_that_fails_half_way(tmp_path):
    save(tmp_path, 4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # bytes a file may hold
    try:
        with pytest.raises(ValueError, match="cannot write the checkpoint of step 8") as error:
            save(tmp_path, 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        gc.collect()  # what orbax leaves behind complains here, not in the next test
    assert "00000004" in str(error.value)
    assert checkpoint.newest(tmp_path).metadata["step"] == 4
    save(tmp_path, 8)
    assert checkpoint.newest(tmp_path).metadata["step"] == 8


def test_too_little_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path, 4)
    usage = checkpoint.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match="the disk has 1,000 free") as error:
        save(tmp_path, 8)
    assert "00000004" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["00000004"]


def test_the_meta_lists_every_file(tmp_path):
    save(tmp_path, 4)
    folder = tmp_path / "00000004"
    listed = set(json.loads((folder / checkpoint.HASHES).read_text())["files"])
    assert {str(path.relative_to(folder)) for path in files(folder)} == {*listed, checkpoint.HASHES}
