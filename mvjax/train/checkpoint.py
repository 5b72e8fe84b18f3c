"""Checkpoints: written whole or not at all, verified before they are read, the newest good one wins.

checkpoints/00000250/adapters/    orbax: the trained parameters, by path
                     optimizer/   orbax: the other leaves of the state, by number
                     meta.json    step, config text, frozen files' identity, size and SHA-256 of each file
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
import numpy as np
import orbax.checkpoint as ocp

from mvjax import tree
from mvjax.train import step as step_lib
from mvjax.weights import locate

META = "meta.json"
SPARE_BYTES = 2**20  # metadata and block rounding, on top of the arrays


class Found(NamedTuple):
    """A verified checkpoint; `damaged` lists the newer ones that failed, with what is wrong."""

    folder: Path
    meta: dict[str, Any]
    damaged: dict[Path, str]


def save(root: Path, state: step_lib.State, *, meta: Mapping[str, Any], keep: int) -> Path:
    """Writes a checkpoint beside the others, then removes all but the newest `keep`.

    It is written to a `.partial` folder and renamed, so that a kill or a full disk leaves the earlier
    ones alone.

    Raises:
      ValueError: if it cannot be written: what failed, and which checkpoint is still there.
    """
    step = int(state.step)
    final = root / f"{step:08d}"
    partial = root / f"{step:08d}.partial"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob("*.partial"):
            shutil.rmtree(leftover)
        _check_space(root, state)
        _write_tree(partial / "adapters", tree.flatten(state.adapters))
        _write_tree(partial / "optimizer", _numbered(state))
        files = {str(p.relative_to(partial)): _size_and_hash(p) for p in _files(partial)}
        text = json.dumps({**meta, "step": step, "files": files}, indent=1)
        (partial / META).write_text(text)
        if final.exists():  # the same step again, after a resume from an older one
            shutil.rmtree(final)
        os.replace(partial, final)
    except Exception as error:  # orbax and tensorstore raise many kinds
        shutil.rmtree(partial, ignore_errors=True)
        kept = [str(folder) for folder in _folders(root)]
        raise ValueError(
            f"{final}: cannot write the checkpoint of step {step}: {_first_line(error)}\n"
            f"Earlier checkpoints are untouched: {kept or 'none yet'}. "
            "Free space or fix permissions, then run the same command to resume."
        ) from error
    for old in _folders(root)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest(root: Path) -> Found:
    """Returns the newest checkpoint whose files all have their recorded size and hash.

    Raises:
      ValueError: if there is none: listing what is wrong with each.
    """
    damaged: dict[Path, str] = {}
    for folder in _folders(root):
        problem, meta = _verify(folder)
        if not problem:
            return Found(folder, meta, damaged)
        damaged[folder] = problem
    listing = "".join(f"\n  {folder}: {problem}" for folder, problem in damaged.items())
    raise ValueError(
        f"{root}: expected a good checkpoint, found {'none' if not damaged else 'only damaged ones:'}"
        f"{listing}\nTrain with another --out, or remove this folder to start over."
    )


def exists(root: Path) -> bool:
    """Returns whether there is any finished checkpoint, good or damaged."""
    return bool(_folders(root))


def read(found: Found, like: step_lib.State) -> step_lib.State:
    """Returns the whole state, placed and shaped as `like` (shape structs with shardings)."""
    adapters = _read_tree(found.folder / "adapters", tree.flatten(like.adapters))
    rest = _read_tree(found.folder / "optimizer", _numbered(like))
    _, structure = jax.tree.flatten(like._replace(adapters=()))
    other = jax.tree.unflatten(structure, [rest[name] for name in sorted(rest)])
    return other._replace(adapters=tree.unflatten(adapters))


def read_adapters(found: Found, like: tree.Tree) -> dict[str, Any]:
    """Returns the trained parameters only, shaped as `like`."""
    return tree.unflatten(_read_tree(found.folder / "adapters", tree.flatten(like)))


def read_raw(found: Found) -> dict[str, Any]:
    """Returns every array of a checkpoint in numpy, by part and name, for inspection."""
    raw = {}
    for part in ("adapters", "optimizer"):
        with _orbax() as checkpointer:
            leaves = checkpointer.restore((found.folder / part).absolute())
        raw |= {f"{part}/{name}": np.asarray(leaf) for name, leaf in leaves.items()}
    return raw


def set_aside(damaged: Mapping[Path, str]) -> None:
    """Renames damaged checkpoints, so that training can write their steps again."""
    for folder in damaged:
        target = folder.with_suffix(".damaged")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(folder, target)


def _folders(root: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if re.fullmatch(r"\d{8,}", p.name)), reverse=True)


def _numbered(state: step_lib.State) -> dict[str, Any]:
    leaves = jax.tree.leaves(state._replace(adapters=()))
    return {f"{i:06d}": leaf for i, leaf in enumerate(leaves)}


@contextlib.contextmanager
def _orbax() -> Iterator[ocp.StandardCheckpointer]:
    """A checkpointer that leaves telling about errors to us: it would log each one several times."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            yield checkpointer
    finally:
        log.setLevel(level)


def _write_tree(folder: Path, flat: Mapping[str, Any]) -> None:
    with _orbax() as checkpointer:
        checkpointer.save(folder.absolute(), {_key(path): leaf for path, leaf in flat.items()})
        checkpointer.wait_until_finished()


def _read_tree(folder: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    with _orbax() as checkpointer:
        found = checkpointer.restore(
            folder.absolute(), {_key(path): leaf for path, leaf in like.items()}
        )
    return {path: found[_key(path)] for path in like}


def _key(path: str) -> str:
    return path.replace("/", "|")  # orbax takes a slash in a key for a folder


def _verify(folder: Path) -> tuple[str, dict[str, Any]]:
    """Returns (what is wrong, or nothing; the metadata)."""
    try:
        meta = json.loads((folder / META).read_text())
        listed = dict(meta["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{META} is unreadable ({_first_line(error)})", {}
    for name, (size, digest) in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing", meta
        found_size, found_digest = _size_and_hash(path)
        if found_size != size:
            return f"{name}: expected {size} bytes, got {found_size}", meta
        if found_digest != digest:
            return f"{name}: its bytes changed since it was written", meta
    return "", meta


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _size_and_hash(path: Path) -> tuple[int, str]:
    return path.stat().st_size, locate.file_hash(path)


def _check_space(root: Path, state: step_lib.State) -> None:
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + SPARE_BYTES
    free = shutil.disk_usage(root).free
    if free < needed:
        raise OSError(f"needs {needed:,} bytes, the disk has {free:,} free")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
