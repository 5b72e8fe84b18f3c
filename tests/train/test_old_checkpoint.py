"""Checkpoints of the earlier layout, written here as they were: | for /, optimizer leaves by number."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from mvjax import tree
from mvjax.config import schema
from mvjax.train import checkpoint, guard, optim, saving, step

SETTINGS = schema.OptimConfig(warmup_steps=2, learning_rate=0.1, spike_factor=3.0, spike_window=4)
STEPS = 9


def former_optimizer() -> optax.GradientTransformation:
    """The chain whose leaves were numbered."""
    return optax.chain(
        guard.remember(SETTINGS.spike_window),
        optax.clip_by_global_norm(SETTINGS.clip_norm),
        optax.adamw(
            optim.schedule(SETTINGS, steps=STEPS),
            *SETTINGS.betas,
            SETTINGS.eps,
            weight_decay=SETTINGS.weight_decay,
            mask=optim.decayed,
        ),
    )


def trained(optimizer) -> step.TrainState:
    """A state after three updates."""
    adapters = {
        "xa": {"q": {"kernel": jnp.arange(12.0).reshape(3, 4)}},
        "norm": {"scale": jnp.ones(5)},
    }
    state = step.init_state(adapters, optimizer, ema=True)
    with jax.numpy_dtype_promotion("standard"):  # optax promotes its step count
        for number in range(3):
            grads = jax.tree.map(lambda leaf, n=number: jnp.cos(leaf + n), adapters)
            loss = jnp.float32(number + 1)
            state = step.update(state, grads, optimizer, loss=loss, good=jnp.bool_(True), ema=0.5)
    return state._replace(skipped=jnp.int32(2))


def write(root, state: step.TrainState):
    """Writes the state as the earlier layout had it; returns the folder."""
    folder = root / f"{int(state.step):08d}"
    leaves = jax.tree.leaves(state._replace(adapters=(), ema=None))
    parts = {
        "adapters": tree.flatten(state.adapters),
        "optimizer": {f"{number:06d}": leaf for number, leaf in enumerate(leaves)},
        "ema": tree.flatten(state.ema),
    }
    for name, flat in parts.items():
        with ocp.StandardCheckpointer() as checkpointer:
            named = {path.replace("/", "|"): leaf for path, leaf in flat.items()}
            checkpointer.save((folder / name).absolute(), named)
    files = {
        str(path.relative_to(folder)): (
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.rglob("*")
        if path.is_file()
    }
    meta = {"config": "...", "frozen": {}, "step": int(state.step), "files": files}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def abstract(state: step.TrainState) -> step.TrainState:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def test_it_is_resumed(tmp_path):
    expected = trained(optim.make(SETTINGS, steps=STEPS))
    folder = write(tmp_path, trained(former_optimizer()))
    assert checkpoint.exists(tmp_path)
    saved = checkpoint.newest(tmp_path)
    assert saved.folder == folder and saved.metadata["step"] == 3 and not saved.damaged
    state = checkpoint.read(saved, abstract(expected))
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_its_mean_is_evaluated_and_exported(tmp_path):
    state = trained(former_optimizer())
    write(tmp_path, state)
    adapters = checkpoint.read_adapters(checkpoint.newest(tmp_path), abstract(state).ema)
    jax.tree.map(np.testing.assert_array_equal, adapters, state.ema)


def test_damage_is_seen_and_a_later_checkpoint_lies_beside_it(tmp_path):
    folder = write(tmp_path, trained(former_optimizer()))
    later = trained(optim.make(SETTINGS, steps=STEPS))._replace(step=jnp.int32(4))
    saving.PendingCheckpoint(tmp_path, later, metadata={"frozen": {}}, keep=2).commit()
    assert checkpoint.newest(tmp_path).metadata["step"] == 4
    next(folder.glob("ema/*/manifest.ocdbt")).unlink()
    (tmp_path / "00000004" / checkpoint.HASHES).write_text("{")
    with pytest.raises(ValueError, match=r"00000003: ema/.*manifest\.ocdbt is missing"):
        checkpoint.newest(tmp_path)


def test_another_optimizer_is_refused_for_training_only(tmp_path):
    write(tmp_path, trained(former_optimizer()))
    saved = checkpoint.newest(tmp_path)
    settings = schema.OptimConfig(warmup_steps=2, spike_factor=None)
    state = abstract(trained(optim.make(settings, steps=STEPS)))
    with pytest.raises(ValueError, match=r"00000003: expected the 8 numbered leaves(.|\n)*--out"):
        checkpoint.read(saved, state)
    checkpoint.read_adapters(saved, state.adapters)
