"""Checkpoints: what their folders hold, and reading them, verified by the hash of every file.

checkpoints/00000250/adapters/    the trained parameters, by path
                     optimizer/   optimizer state by name, such as adam/mu/xa/q/kernel; `step` and `skipped`
                     ema/         mean of the adapters, if the run keeps one
                     metadata/    step, config text, identity and hash of the frozen weights, as JSON
                     hashes.json  size and SHA-256 of each file above: written last, this is the commit

Of a run on a store, the folders here hold the lists of hashes alone; the other files are copied as needed.

The layout of earlier versions is read, too: `meta.json` in place of metadata/ and hashes.json, | in place of
/ in the names of adapters, and an optimizer whose leaves are numbered in the order of its chain.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from mvjax import files as files_lib
from mvjax import messages, tree
from mvjax.stores import places, staging
from mvjax.train import step as step_lib

HASHES = "hashes.json"
ADAPTERS, OPTIMIZER, EMA, METADATA = "adapters", "optimizer", "ema", "metadata"  # orbax items

_OLD_META = "meta.json"  # of the earlier layout
LISTINGS = (HASHES, _OLD_META)  # files without which a folder is no checkpoint


class Checkpoint(NamedTuple):
    """A verified checkpoint."""

    folder: Path
    metadata: dict[str, Any]  # step, config text, identity and hash of the frozen weights
    damaged: dict[Path, str]  # {folder: what is wrong} of newer ones that failed verification


def newest(root: Path) -> Checkpoint:
    """Returns the newest checkpoint whose files all have their recorded size and SHA-256.

    Raises:
      ValueError: if there is none: listing what is wrong with each.
    """
    damaged: dict[Path, str] = {}
    for folder in folders(root):
        problem = _problem(folder)
        if not problem:
            return _verified(folder, damaged)
        damaged[folder] = problem
    listing = messages.lines(f"{folder}: {problem}" for folder, problem in damaged.items())
    raise ValueError(
        f"{root}: expected a good checkpoint, found {'none' if not damaged else 'only damaged ones:'}"
        f"{listing}\nTrain with another --out, or remove this folder to start over."
    )


def at(root: Path, step: int) -> Checkpoint:
    """Returns the checkpoint of a step, verified as in `newest`.

    Raises:
      ValueError: if it is damaged, or there is none: which there are.
    """
    for folder in folders(root):
        if int(folder.name) == step:
            if problem := _problem(folder):
                raise ValueError(f"{folder}: expected a good checkpoint: {problem}")
            return _verified(folder, {})
    there = messages.names(int(folder.name) for folder in reversed(folders(root)))
    raise ValueError(
        f"{root}: no checkpoint of step {step}; there are those of steps: {there}"
        " (train.keep_checkpoints says how many are kept)"
    )


def exists(root: Path) -> bool:
    """Returns whether there is any committed checkpoint, good or damaged."""
    return any(_listing(folder).is_file() for folder in folders(root))


def read(checkpoint: Checkpoint, abstract: step_lib.TrainState) -> step_lib.TrainState:
    """Returns the whole state, with the shapes and shardings of `abstract` (ShapeDtypeStructs).

    Raises:
      ValueError: if the optimizer state of the earlier layout has other leaves than this version's.
    """
    folder = _whole(checkpoint.folder)
    if _is_old(checkpoint.folder):
        return _read_old(folder, abstract)
    restored = {
        item: tree.flatten(_restore(folder / item, tree.unflatten(flat)))
        for item, flat in items(abstract).items()
    }
    leaves = [restored[item][path] for item, path in _places(abstract)]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


def read_adapters(checkpoint: Checkpoint, abstract: tree.Tree) -> dict[str, Any]:
    """Returns the trained parameters only, shaped as `abstract`: their EMA if there is one."""
    whole = _whole(checkpoint.folder)
    folder = whole / EMA
    folder = folder if folder.is_dir() else whole / ADAPTERS
    return (_read_old_params if _is_old(checkpoint.folder) else _restore)(folder, abstract)


def identity(checkpoint: Checkpoint) -> str:
    """Returns the SHA-256 of the list of its files' hashes."""
    return files_lib.file_hash(_listing(checkpoint.folder))


def set_aside(damaged: Mapping[Path, str]) -> None:
    """Renames damaged checkpoints, so that training can write their steps again."""
    for folder in damaged:
        target = folder.with_suffix(".damaged")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(folder, target)


def items(state: step_lib.TrainState) -> dict[str, dict[str, Any]]:
    """Returns {item: {path: leaf}}, of values or of ShapeDtypeStructs."""
    found: dict[str, dict[str, Any]] = {}
    for (item, path), leaf in zip(_places(state), jax.tree.leaves(state), strict=True):
        found.setdefault(item, {})[path] = leaf
    return found


def folders(root: Path) -> list[Path]:
    """Returns the folders that orbax has finished, newest first."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if re.fullmatch(r"\d{8,}", p.name)), reverse=True)


def hashes(folder: Path) -> dict[str, tuple[int, str]]:
    """Returns {name: (size, SHA-256)} of the files in a folder."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): _size_and_hash(path) for path in found}


def first_line(error: BaseException) -> str:
    """Returns an error as one line of a message."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Silences orbax, which logs each error several times; what it raises is reported once, by us."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _verified(folder: Path, damaged: dict[Path, str]) -> Checkpoint:
    meta = _OLD_META if _is_old(folder) else f"{METADATA}/metadata"
    return Checkpoint(folder, json.loads(staging.here(folder / meta).read_text()), damaged)


def _whole(folder: Path) -> Path:
    """Returns the folder with all files of a checkpoint: of a store, that of the copies."""
    url = places.url(folder)
    if url is None or (folder / METADATA).is_dir():
        return folder
    listed = json.loads(_listing(folder).read_text())["files"]
    for name, (_, digest) in listed.items():
        staging.here(folder / name, sha256=digest)
    return places.staged(url)


def _restore(folder: Path, abstract: Any) -> Any:
    """Returns the tree of arrays of an orbax item, placed as `abstract` says."""
    with quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), abstract)


def _places(state: step_lib.TrainState) -> list[tuple[str, str]]:
    """Returns (item, path) of each leaf of the state, in leaf order; counters go to the optimizer."""
    places = []
    for keys, _ in jax.tree_util.tree_flatten_with_path(state)[0]:
        item, _, path = jax.tree_util.keystr(keys, simple=True, separator="/").partition("/")
        places.append((item, path) if path else (OPTIMIZER, item))
    return places


def _listing(folder: Path) -> Path:
    """Returns the file that lists the size and hash of the others."""
    return folder / (_OLD_META if _is_old(folder) else HASHES)


def _problem(folder: Path) -> str:
    """Returns what is wrong with a checkpoint, or an empty text."""
    listing = _listing(folder)
    try:
        listed = dict(json.loads(listing.read_text())["files"])
    except FileNotFoundError:
        return f"{listing.name} is missing: the save was killed before its commit"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{listing.name} is unreadable ({first_line(error)})"
    for name, (size, digest) in listed.items():
        try:
            path = staging.here(folder / name, sha256=digest)
        except ValueError:
            return f"{name}: its bytes changed since it was written"
        if not path.is_file():
            return f"{name} is missing"
        actual_size, actual_digest = _size_and_hash(path)
        if actual_size != size:
            return f"{name}: expected {size} bytes, got {actual_size}"
        if actual_digest != digest:
            return f"{name}: its bytes changed since it was written"
    return ""


def _size_and_hash(path: Path) -> tuple[int, str]:
    return path.stat().st_size, files_lib.file_hash(path)


def _is_old(folder: Path) -> bool:
    return (folder / _OLD_META).is_file()


def _read_old(folder: Path, abstract: step_lib.TrainState) -> step_lib.TrainState:
    # `optim.make` chains what it chained then, and its named state has the order of the chain.
    leaves, structure = jax.tree.flatten(abstract._replace(adapters=(), ema=None))
    numbered = {f"{number:06d}": leaf for number, leaf in enumerate(leaves)}
    try:
        restored = _restore(folder / OPTIMIZER, numbered)
    except ValueError as error:
        raise ValueError(
            f"{folder}: expected the {len(leaves)} numbered leaves of this config's optimizer state and "
            f"counters, got others: {str(error).splitlines()[0]}\n"
            "Its adapters can be evaluated and exported. To train on, use the version of mvjax that "
            "wrote it, or start a run with another --out."
        ) from error
    state = jax.tree.unflatten(structure, [restored[name] for name in numbered])
    return state._replace(
        adapters=_read_old_params(folder / ADAPTERS, abstract.adapters),
        ema=None if abstract.ema is None else _read_old_params(folder / EMA, abstract.ema),
    )


def _read_old_params(folder: Path, abstract: tree.Tree) -> dict[str, Any]:
    flat = {path.replace("/", "|"): leaf for path, leaf in tree.flatten(abstract).items()}
    restored = _restore(folder, flat)
    return tree.unflatten({path.replace("|", "/"): leaf for path, leaf in restored.items()})
