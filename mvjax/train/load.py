"""Parameters of a run: shapes, frozen weights from files, fresh adapters, a trained run's whole model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from mvjax import run_folder, tree
from mvjax.config import schema as config
from mvjax.config import text as config_text
from mvjax.nn import model as model_lib
from mvjax.train import checkpoint, distributed, frozen_dtype, sharding
from mvjax.weights import frozen_files, lazy, placement

V = TypeVar("V")
Identity = frozen_files.Identity


class ModelParams(NamedTuple):
    """The two trees of a run, on the devices of its mesh."""

    adapters: tree.Tree
    frozen: tree.Tree


class TrainedRun(NamedTuple):
    """A trained model read back: `params` is the whole tree, in numpy."""

    config: config.Config
    params: dict[str, Any]
    step: int


def shapes(run: config.Config) -> ModelParams:
    """Returns the shape structs of both trees without making a single parameter."""
    model = model_lib.VisionSpeech(run.model)
    whole = jax.eval_shape(model.init, jax.random.key(0))["params"]
    return ModelParams(*tree.partition(whole, run.train.trained))


def abstract_params(run: config.Config) -> ModelParams:
    """Returns the shape structs of both trees as training holds them, `train.frozen_dtype` applied."""
    whole = shapes(run)
    return ModelParams(whole.adapters, frozen_dtype.abstract_frozen_params(run, whole.frozen))


def counts(run: config.Config) -> dict[str, int]:
    """Returns how many parameters each part of the model has, by name, and the total."""
    adapters, frozen_shapes = (tree.flatten(part) for part in shapes(run))
    parts = {"backbone": "backbone/", "depth transformer": "depformer/", "SigLIP": "image/encoder/"}
    found = {
        name: sum(leaf.size for path, leaf in frozen_shapes.items() if path.startswith(prefix))
        for name, prefix in parts.items()
    }
    found["adapters"] = sum(leaf.size for leaf in adapters.values())
    found["total"] = sum(leaf.size for leaf in (adapters | frozen_shapes).values())
    return found


def weights(run: config.Config, mesh: Mesh) -> ModelParams:
    """Returns both trees for a new run: from the files what they hold, and the rest initialized.

    A trained parameter that a file holds starts from the file, in float32.

    Raises:
      ValueError: naming a file, and every tensor in it that is damaged or does not fit the config.
    """
    stored = _open_verified(run)
    wanted = tree.flatten(shapes(run).adapters)
    known = {path: stored[path] for path in wanted if path in stored}
    fresh = _fresh(run, mesh, [path for path in wanted if path not in stored])
    started = placement.place(known, _shardings(known, mesh), dtype=np.float32)
    adapters = tree.unflatten({path: (started | fresh)[path] for path in wanted})
    return ModelParams(adapters, frozen_dtype.place(run, _frozen(run, stored), mesh))


def frozen(run: config.Config, mesh: Mesh) -> dict[str, Any]:
    """Returns the frozen tree, from the files; raises as `weights`."""
    return frozen_dtype.place(run, _frozen(run, _open_verified(run)), mesh)


def from_files(run: config.Config) -> dict[str, Any]:
    """Returns what the frozen weight files hold, in numpy: backbone, depformer, image/encoder.

    Moshi keeps its stored dtype for a bfloat16 model, else float32.
    """
    stored = _open_verified(run)
    return tree.unflatten({path: np.asarray(leaf[()]) for path, leaf in stored.items()})


def identity(run: config.Config) -> Identity:
    """Returns location and SHA-256 of the weights that frozen parameters come from.

    Of several processes the first reads the files and tells the others.

    Raises:
      ValueError: as `frozen_files.identity`.
    """
    return distributed.from_first(lambda: frozen_files.identity(run.frozen))


def tree_hash(params: tree.Tree) -> str:
    """Returns the SHA-256 over paths, dtypes, shapes and bytes: equal exactly if no bit differs.

    Of several processes, each hashes what its own devices hold.
    """
    digest = hashlib.sha256()
    for path, leaf in tree.flatten(params).items():
        digest.update(f"{path} {leaf.dtype} {leaf.shape}\n".encode())
        for part in placement.host_parts(leaf):
            digest.update(part.tobytes())
    return digest.hexdigest()


def read_config(folder: Path) -> config.Config:
    """Returns the config that a run folder was made with.

    Raises:
      ValueError: if the folder is no run folder, or its config is not one of this version.
    """
    path = folder / run_folder.CONFIG_JSON
    if not path.is_file():
        raise ValueError(
            f"{folder}: expected a run folder of `mvjax train`, found no {run_folder.CONFIG_JSON}"
        )
    try:
        return config_text.from_json(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def trained(folder: Path) -> TrainedRun:
    """Reads a run back for evaluation or export: newest good checkpoint plus frozen files.

    Raises:
      ValueError: if there is no good checkpoint, or a frozen file is another one than trained with.
    """
    run = read_config(folder)
    found = checkpoint.newest(folder / run_folder.CHECKPOINTS)
    check_identity(found.meta["frozen"], identity(run), place=str(found.folder))
    adapters = checkpoint.read_adapters(found, shapes(run).adapters)
    stored = tree.flatten(from_files(run))
    frozen = tree.unflatten(_frozen(run, stored))
    params = tree.merge(jax.tree.map(np.asarray, adapters), frozen)
    return TrainedRun(run, params, found.meta["step"])


def check_identity(expected: Mapping[str, Any], got: Identity, *, place: str) -> None:
    """Checks that the frozen files are the ones a checkpoint was trained with.

    Raises:
      ValueError: naming each file that differs.
    """
    none = {"path": None, "sha256": None}
    bad = []
    for name in sorted(expected.keys() | got.keys()):
        a, b = expected.get(name, none), got.get(name, none)
        if a["sha256"] != b["sha256"]:
            bad.append(
                f"frozen.{name}: expected SHA-256 {a['sha256']} ({a['path']}),"
                f" got {b['sha256']} ({b['path']})"
            )
    if bad:
        raise ValueError(
            f"{place} was trained on other frozen weights:\n  "
            + "\n  ".join(bad)
            + "\nPoint `frozen` at the files of that run."
        )


def _open_verified(run: config.Config) -> dict[str, lazy.LazyTensor]:
    """Opens the files; the first process also compares them with the checksums that they carry."""
    if jax.process_index() == 0:
        frozen_files.verify(run.frozen)
    return frozen_files.open_weights(run.frozen, run.model)


def _frozen(run: config.Config, stored: Mapping[str, V]) -> dict[str, V]:
    """Picks the frozen parameters out of what the files hold."""
    wanted = tree.flatten(shapes(run).frozen)
    missing = [path for path in wanted if path not in stored]
    if missing:
        raise ValueError(
            f"train.trained: no weight file holds these, so they cannot be frozen: {missing}"
        )
    return {path: stored[path] for path in wanted}


def _shardings(leaves: Mapping[str, lazy.LazyTensor], mesh: Mesh) -> dict[str, Any]:
    return tree.flatten(sharding.shardings(tree.unflatten(leaves), mesh))


def _fresh(run: config.Config, mesh: Mesh, paths: list[str]) -> dict[str, Any]:
    """Initializes the named parameters only, each straight into its sharding."""
    model = model_lib.VisionSpeech(run.model)

    def init(key: jax.Array) -> dict[str, Any]:
        flat = tree.flatten(model.init(key)["params"])
        return {path: flat[path] for path in paths}

    key = jax.random.key(run.train.seed)
    expected = jax.eval_shape(init, key)
    placed = tree.flatten(sharding.shardings(tree.unflatten(expected), mesh))
    return jax.jit(init, out_shardings=placed)(key)
