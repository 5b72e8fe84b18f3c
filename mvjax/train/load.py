"""Parameters of a run: their shapes, frozen weights from files, initial adapters, a trained run's model."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mvjax import messages, run_folder, tree
from mvjax.config import schema
from mvjax.config import text as config_text
from mvjax.nn import model as model_lib
from mvjax.train import checkpoint, distributed, frozen_dtype, sharding
from mvjax.weights import frozen_files, lazy, placement

Tensors = dict[str, lazy.LazyTensor]  # by our path


class ModelParams(NamedTuple):
    """The two trees of a run: arrays on the devices of its mesh, or ShapeDtypeStructs."""

    adapters: tree.Tree
    frozen: tree.Tree


class TrainedRun(NamedTuple):
    """A trained model read back; `params` is the whole tree, in numpy or on a mesh."""

    config: schema.Config
    params: dict[str, Any]
    step: int
    identity: str = ""  # of the checkpoint: another one of the same step has another
    mesh: Mesh | None = None


class FrozenWeights(NamedTuple):
    """The frozen weight files of a run: verified, open, not yet in memory.

    Placing a tensor reads the slices that the devices of this process hold.
    """

    identity: frozen_files.Identity
    tensors: Tensors


def shapes(run: schema.Config) -> ModelParams:
    """Returns ShapeDtypeStructs of both trees as they are initialized; computed once for each model."""
    return _shapes(run.model, run.train.trained)


def abstract_params(run: schema.Config) -> ModelParams:
    """Returns ShapeDtypeStructs of both trees as training holds them, after `train.frozen_dtype`."""
    whole = shapes(run)
    return ModelParams(whole.adapters, frozen_dtype.abstract_frozen_params(run, whole.frozen))


def counts(run: schema.Config) -> dict[str, int]:
    """Returns how many parameters each part of the model has, by name, and the total."""
    adapters, frozen_shapes = (tree.flatten(part) for part in shapes(run))
    parts = {"backbone": "backbone/", "depth transformer": "depformer/", "SigLIP": "image/encoder/"}
    leaves = {
        name: [leaf for path, leaf in frozen_shapes.items() if path.startswith(prefix)]
        for name, prefix in parts.items()
    }
    leaves["adapters"] = list(adapters.values())
    leaves["total"] = list((adapters | frozen_shapes).values())
    return {name: sum(leaf.size for leaf in part) for name, part in leaves.items()}


def open_frozen(run: schema.Config) -> FrozenWeights:
    """Opens the frozen files; the first process reads them once, to hash and to verify them.

    Raises:
      ValueError: naming a file, and every tensor in it that is damaged or does not fit the config.
    """
    identity = distributed.from_first(lambda: frozen_files.identity(run.frozen))
    return FrozenWeights(identity, frozen_files.open_weights(run.frozen, run.model))


def weights(run: schema.Config, mesh: Mesh, files: FrozenWeights | None = None) -> ModelParams:
    """Returns both trees for a new run: from the files what they hold, and the rest initialized.

    A trained parameter that a file holds starts from the file, in float32. Without `files` they are opened;
    raises as `open_frozen`.
    """
    files = files or open_frozen(run)
    abstract = tree.flatten(shapes(run).adapters)
    known = {path: files.tensors[path] for path in abstract if path in files.tensors}
    placed = tree.flatten(sharding.shardings(known, mesh))
    loaded = placement.place(known, placed, dtype=np.float32)
    initial = _initialized(run, mesh, [path for path in abstract if path not in known])
    adapters = tree.unflatten({path: (loaded | initial)[path] for path in abstract})
    return ModelParams(adapters, frozen(run, mesh, files))


def frozen(run: schema.Config, mesh: Mesh, files: FrozenWeights | None = None) -> dict[str, Any]:
    """Returns the frozen tree, from the files; `files` and errors as in `weights`."""
    tensors = frozen_tensors(run, (files or open_frozen(run)).tensors)
    return sharding.in_formats(frozen_dtype.place(run, tensors, mesh), mesh)


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


def read_config(folder: Path) -> schema.Config:
    """Returns the config that a run folder was made with.

    Raises:
      ValueError: if the folder is no run folder, or its config is not one of this version.
    """
    path = folder / run_folder.CONFIG_JSON
    if not run_folder.is_run(folder):
        meant = run_folder.nearby(folder, run_folder.is_run)
        fact = meant or f", found no {run_folder.CONFIG_JSON} and {run_folder.CONFIG_TEXT}"
        raise ValueError(f"{folder}: expected a run folder of `mvjax train`{fact}")
    try:
        return config_text.from_json(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def trained(
    folder: Path,
    step: int | None = None,
    *,
    mesh: Callable[[schema.Config], Mesh] | None = None,
) -> TrainedRun:
    """Reads a run back for evaluation or export: newest good checkpoint, or a step's, and frozen files.

    With a mesh, each process reads what its devices hold; the parameters are as stored.

    Raises:
      ValueError: if there is no good checkpoint, or a frozen file is another one than trained with.
    """
    run = read_config(folder)

    def find() -> list:
        saved = _saved(folder, step)
        return [saved.folder.name, saved.metadata, checkpoint.identity(saved)]

    name, metadata, identity = distributed.from_first(find)
    saved = checkpoint.Checkpoint(folder / run_folder.CHECKPOINTS / name, metadata, {})
    files = open_frozen(run)
    check_identity(metadata["frozen"], files.identity, place=str(saved.folder))
    abstract, tensors = shapes(run).adapters, frozen_tensors(run, files.tensors)
    if mesh is None:
        adapters = jax.tree.map(np.asarray, checkpoint.read_adapters(saved, abstract))
        frozen = {path: np.asarray(leaf[()]) for path, leaf in tensors.items()}
        return TrainedRun(run, tree.merge(adapters, frozen), metadata["step"], identity)
    on = mesh(run)
    placed = sharding.with_shardings(abstract, sharding.shardings(abstract, on))
    adapters = checkpoint.read_adapters(saved, placed)
    frozen = placement.place(tensors, tree.flatten(sharding.shardings(tensors, on)))
    return TrainedRun(run, tree.merge(adapters, frozen), metadata["step"], identity, on)


def identity(folder: Path, step: int | None = None) -> str:
    """Returns the identity of a run's newest good checkpoint, or a step's; raises as `trained`."""
    return checkpoint.identity(_saved(folder, step))


def other_adapters(
    run: schema.Config, mesh: Mesh, other: run_folder.RunStep
) -> tuple[dict[str, Any], str]:
    """Returns the adapters of another run, placed for this one, and its name as RUN@STEP.

    If the other run kept a moving average of them, it is taken.

    Raises:
      ValueError: naming every adapter that only one of the runs has, or has in another shape.
    """
    abstract = shapes(run).adapters
    name = distributed.from_first(lambda: find_adapters(run, other).folder.name)
    saved = checkpoint.Checkpoint(other.folder / run_folder.CHECKPOINTS / name, {}, {})
    placed = sharding.with_shardings(abstract, sharding.shardings(abstract, mesh))
    return checkpoint.read_adapters(saved, placed), str(other._replace(step=int(name)))


def find_adapters(run: schema.Config, other: run_folder.RunStep) -> checkpoint.Checkpoint:
    """Returns the verified checkpoint of another run whose adapters fit this one; raises as above."""
    theirs = shapes(read_config(other.folder)).adapters
    tree.assert_same_tree(shapes(run).adapters, theirs, place=f"the adapters of {other.folder}")
    return _saved(*other)


def _saved(folder: Path, step: int | None) -> checkpoint.Checkpoint:
    root = folder / run_folder.CHECKPOINTS
    return checkpoint.newest(root) if step is None else checkpoint.at(root, step)


def check_identity(expected: Mapping[str, Any], got: frozen_files.Identity, *, place: str) -> None:
    """Checks that the frozen files are the ones a checkpoint was trained with.

    Raises:
      ValueError: naming each file that differs.
    """
    none = {"path": None, "sha256": None}
    names = expected.keys() | got.keys()
    if (
        "lora_scaling" not in expected and "moshi_lora" in expected
    ):  # a checkpoint of an older version
        names = names - {"lora_scaling"}
    pairs = {name: (expected.get(name, none), got.get(name, none)) for name in sorted(names)}
    bad = [
        f"frozen.{name}: expected SHA-256 {a['sha256']} ({a['path']}), got {b['sha256']} ({b['path']})"
        for name, (a, b) in pairs.items()
        if a["sha256"] != b["sha256"]
    ]
    remedy = "\nPoint `frozen` at the files of that run."
    tree.refuse(bad, f"{place} was trained on other frozen weights", remedy=remedy)


@functools.lru_cache(maxsize=16)
def _shapes(model: schema.ModelConfig, trained: tuple[str, ...]) -> ModelParams:
    init = model_lib.VisionSpeech(model).init
    return ModelParams(*tree.partition(jax.eval_shape(init, jax.random.key(0))["params"], trained))


def frozen_tensors(run: schema.Config, tensors: Tensors) -> Tensors:
    """Picks the frozen parameters out of what the files hold.

    Raises:
      ValueError: naming those that no file holds.
    """
    abstract = tree.flatten(shapes(run).frozen)
    missing = [path for path in abstract if path not in tensors]
    if missing:
        raise ValueError(
            f"train.trained: no weight file holds these, so they cannot be frozen:"
            f" {messages.names(missing)}"
        )
    return {path: tensors[path] for path in abstract}


def _initialized(run: schema.Config, mesh: Mesh, paths: list[str]) -> dict[str, Any]:
    """Initializes the named parameters only, each straight into its sharding."""
    model = model_lib.VisionSpeech(run.model)

    def init(key: jax.Array) -> dict[str, Any]:
        flat = tree.flatten(model.init(key)["params"])
        return {path: flat[path] for path in paths}

    key = jax.random.key(run.train.seed)
    abstract = tree.flatten(shapes(run).adapters)
    placed = sharding.shardings({path: abstract[path] for path in paths}, mesh)
    return jax.jit(init, out_shardings=tree.flatten(placed))(key)
