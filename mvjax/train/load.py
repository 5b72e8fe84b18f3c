"""Parameters of a run: shapes, frozen weights from files, fresh adapters, a trained run's whole model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from mvjax import config, config_text, tree
from mvjax.nn import model as model_lib
from mvjax.train import checkpoint, sharding
from mvjax.weights import big_vision, kyutai, locate

Identity = dict[str, dict[str, str]]  # {"moshi": {"path": ..., "sha256": ...}, ...}

CONFIG_JSON = "config.json"
CHECKPOINTS = "checkpoints"


class Params(NamedTuple):
    """The two trees of a run, on the devices of its mesh."""

    adapters: tree.Tree
    frozen: tree.Tree


class Run(NamedTuple):
    """A trained model read back: `params` is the whole tree, in numpy."""

    config: config.Config
    params: dict[str, Any]
    step: int


def shapes(run: config.Config) -> Params:
    """Returns the shape structs of both trees without making a single parameter."""
    model = model_lib.VisionSpeech(run.model)
    whole = jax.eval_shape(model.init, jax.random.key(0))["params"]
    return Params(*tree.partition(whole, run.train.trained))


def weights(run: config.Config, mesh: Mesh) -> Params:
    """Returns both trees for a new run: from the files what they hold, and the rest initialised.

    A trained parameter that a file holds starts from the file, in float32.
    """
    stored = tree.flatten(from_files(run))
    wanted = tree.flatten(shapes(run).adapters)
    known = {path: stored[path].astype(np.float32) for path in wanted if path in stored}
    fresh = _fresh(run, mesh, [path for path in wanted if path not in stored])
    adapters = tree.merge(sharded(tree.unflatten(known), mesh), tree.unflatten(fresh))
    return Params(adapters, sharded(_frozen(run, stored), mesh))


def frozen(run: config.Config, mesh: Mesh) -> dict[str, Any]:
    """Returns the frozen tree, from the files."""
    return sharded(_frozen(run, tree.flatten(from_files(run))), mesh)


def from_files(run: config.Config) -> dict[str, Any]:
    """Returns what the frozen weight files hold, in numpy: backbone, depformer, image/encoder.

    Moshi keeps its stored dtype for a bfloat16 model, else float32.
    """
    dtype = None if run.model.dtype == "bfloat16" else np.float32
    moshi = kyutai.load_moshi(locate.resolve(run.frozen.moshi), run.model, dtype=dtype)
    encoder = big_vision.load_siglip(run.frozen.siglip, run.model.siglip)
    return tree.merge(moshi, {"image": {"encoder": encoder}})


def sharded(params: tree.Tree, mesh: Mesh) -> dict[str, Any]:
    """Puts numpy parameters where the sharding rules say."""
    placed = tree.flatten(sharding.shardings(params, mesh))
    flat = tree.flatten(params)
    return tree.unflatten({path: jax.device_put(flat[path], placed[path]) for path in flat})


def identity(run: config.Config) -> Identity:
    """Returns path and SHA-256 of each file that frozen parameters come from."""
    return {
        name: {"path": location, "sha256": file_hash(locate.resolve(location))}
        for name, location in (("moshi", run.frozen.moshi), ("siglip", run.frozen.siglip))
    }


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_hash(params: tree.Tree) -> str:
    """Returns the SHA-256 over paths, dtypes, shapes and bytes: equal exactly if no bit differs."""
    digest = hashlib.sha256()
    for path, leaf in tree.flatten(params).items():
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def read_config(folder: Path) -> config.Config:
    """Returns the config that a run folder was made with.

    Raises:
      ValueError: if the folder is no run folder, or its config is not one of this version.
    """
    path = folder / CONFIG_JSON
    if not path.is_file():
        raise ValueError(
            f"{folder}: expected a run folder of `mvjax train`, found no {CONFIG_JSON}"
        )
    try:
        return config_text.from_json(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def trained(folder: Path) -> Run:
    """Reads a run back for evaluation or export: newest good checkpoint plus frozen files.

    Raises:
      ValueError: if there is no good checkpoint, or a frozen file is another one than trained with.
    """
    run = read_config(folder)
    found = checkpoint.newest(folder / CHECKPOINTS)
    check_identity(found.meta["frozen"], identity(run), place=str(found.folder))
    adapters = checkpoint.read_adapters(found, shapes(run).adapters)
    stored = tree.flatten(from_files(run))
    params = tree.merge(jax.tree.map(np.asarray, adapters), _frozen(run, stored))
    return Run(run, params, found.meta["step"])


def check_identity(expected: Mapping[str, Any], got: Identity, *, place: str) -> None:
    """Checks that the frozen files are the ones a checkpoint was trained with.

    Raises:
      ValueError: naming each file that differs.
    """
    bad = [
        f"frozen.{name}: expected SHA-256 {expected[name]['sha256']} ({expected[name]['path']}), "
        f"got {got[name]['sha256']} ({got[name]['path']})"
        for name in got
        if got[name]["sha256"] != expected[name]["sha256"]
    ]
    if bad:
        raise ValueError(
            f"{place} was trained on other frozen weights:\n  "
            + "\n  ".join(bad)
            + "\nPoint `frozen` at the files of that run."
        )


def _frozen(run: config.Config, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Picks the frozen parameters out of what the files hold."""
    wanted = tree.flatten(shapes(run).frozen)
    missing = [path for path in wanted if path not in stored]
    if missing:
        raise ValueError(
            f"train.trained: no weight file holds these, so they cannot be frozen: {missing}"
        )
    return tree.unflatten({path: stored[path] for path in wanted})


def _fresh(run: config.Config, mesh: Mesh, paths: list[str]) -> dict[str, Any]:
    """Initialises the named parameters only, each straight into its sharding."""
    model = model_lib.VisionSpeech(run.model)

    def init(key: jax.Array) -> dict[str, Any]:
        flat = tree.flatten(model.init(key)["params"])
        return {path: flat[path] for path in paths}

    key = jax.random.key(run.train.seed)
    expected = jax.eval_shape(init, key)
    placed = tree.flatten(sharding.shardings(tree.unflatten(expected), mesh))
    return jax.jit(init, out_shardings=placed)(key)
