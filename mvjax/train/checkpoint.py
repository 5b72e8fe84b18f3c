"""Checkpoints: written by orbax's CheckpointManager, committed with a hash of every file, verified when read.

checkpoints/00000250/adapters/    the trained parameters, by path
                     optimizer/   optimizer state by name, such as adam/mu/xa/q/kernel; `step` and `skipped`
                     ema/         mean of the adapters, if the run keeps one
                     metadata/    step, config text, identity and hash of the frozen weights, as JSON
                     hashes.json  size and SHA-256 of each file above: written last, this is the commit

`old_checkpoint` reads the layout of earlier versions.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from mvjax import files as files_lib
from mvjax import tree
from mvjax.train import distributed, old_checkpoint, orbax_io
from mvjax.train import step as step_lib

HASHES = "hashes.json"
ADAPTERS, OPTIMIZER, EMA, METADATA = "adapters", "optimizer", "ema", "metadata"  # orbax items

_SPARE_BYTES = 2**20  # metadata and block rounding, on top of the arrays
_UNFINISHED = re.compile(r"\d{8,}\.(orbax-checkpoint-tmp.*|partial)")  # of a killed save


class Checkpoint(NamedTuple):
    """A verified checkpoint.

    Attributes:
      folder: of its step.
      metadata: step, config text, identity and hash of the frozen weights.
      damaged: {folder: what is wrong} of newer checkpoints that failed verification.
    """

    folder: Path
    metadata: dict[str, Any]
    damaged: dict[Path, str]


class PendingCheckpoint:
    """A checkpoint that is being written: values are copied, so training may go on and donate the state.

    Several processes write it together: each calls `begin` at the same step, then `commit`, which may
    run in another thread.
    """

    def __init__(self, root: Path, step: int, metadata: Mapping[str, Any], keep: int) -> None:
        self._root, self._metadata, self._keep = root, {**metadata, "step": step}, keep
        self._folder = root / f"{step:08d}"
        self._manager: ocp.CheckpointManager | None = None
        self.step = step

    def begin(self, state: step_lib.TrainState) -> PendingCheckpoint:
        """Copies the values and starts writing; raises as the function `begin`."""
        try:
            distributed.from_first(lambda: self._make_room(state))
            items: dict[str, Any] = {
                name: ocp.args.StandardSave(tree.unflatten(flat))
                for name, flat in _items(state).items()
            }
            items[METADATA] = ocp.args.JsonSave(self._metadata)
            with orbax_io.quiet():
                # One manager a save: after a failed save a manager raises that error again.
                self._manager = ocp.CheckpointManager(self._root.absolute(), options=_options())
                self._manager.save(self.step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self._failure(error) from error
        return self

    def commit(self) -> Path:
        """Waits until all is written, then writes the hashes, then removes all but the newest `keep`.

        A kill before the hashes are written leaves no checkpoint of this step and the earlier ones as
        they were. Raises as `begin`.
        """
        assert self._manager is not None
        try:
            with orbax_io.quiet():
                self._manager.wait_until_finished()  # orbax has renamed its temporary folder by then
            if jax.process_index() == 0:
                hashes = {
                    name: _size_and_hash(self._folder / name) for name in _files(self._folder)
                }
                text = json.dumps({"files": hashes}, indent=1)
                files_lib.write_atomic(self._folder / HASHES, text.encode())
                for old in _folders(self._root)[self._keep :]:
                    shutil.rmtree(old, ignore_errors=True)
        except Exception as error:
            raise self._failure(error) from error
        finally:
            self._close()
        return self._folder

    def _make_room(self, state: step_lib.TrainState) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        for folder in self._root.iterdir():
            # The same step is there after a resume from an older checkpoint, or without its hashes.
            if _UNFINISHED.fullmatch(folder.name) or folder == self._folder:
                shutil.rmtree(folder)
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SPARE_BYTES
        free = shutil.disk_usage(self._root).free
        if free < needed:
            raise OSError(f"needs {needed:,} bytes, the disk has {free:,} free")

    def _failure(self, error: Exception) -> ValueError:
        self._close()
        if jax.process_index() == 0:
            for folder in (self._folder, *self._root.glob(f"{self._folder.name}.orbax*")):
                shutil.rmtree(folder, ignore_errors=True)
        kept = [str(folder) for folder in _folders(self._root)]
        return ValueError(
            f"{self._folder}: cannot write the checkpoint of step {self.step}: {_first_line(error)}\n"
            f"Earlier checkpoints are untouched: {kept or 'none yet'}. "
            "Free space or fix permissions, then run the same command to resume."
        )

    def _close(self) -> None:
        if self._manager is not None:
            with orbax_io.quiet(), contextlib.suppress(Exception):  # raised by waiting already
                self._manager.close()


def begin(
    root: Path, state: step_lib.TrainState, *, metadata: Mapping[str, Any], keep: int
) -> PendingCheckpoint:
    """Copies the state to the host and starts writing a checkpoint in the background.

    Args:
      root: the folder of all checkpoints.
      state: adapters, optimizer state and counters; may be donated when this returns.
      metadata: JSON values; `step` is added.
      keep: how many checkpoints to keep, this one included, once it is committed.

    Raises:
      ValueError: if it cannot be written: what failed, and which checkpoints are still there.
    """
    return PendingCheckpoint(root, int(state.step), metadata, keep).begin(state)


def newest(root: Path) -> Checkpoint:
    """Returns the newest checkpoint whose files all have their recorded size and SHA-256.

    Raises:
      ValueError: if there is none: listing what is wrong with each.
    """
    damaged: dict[Path, str] = {}
    for folder in _folders(root):
        problem = _problem(folder)
        if not problem:
            return Checkpoint(folder, _metadata(folder), damaged)
        damaged[folder] = problem
    listing = "".join(f"\n  {folder}: {problem}" for folder, problem in damaged.items())
    raise ValueError(
        f"{root}: expected a good checkpoint, found {'none' if not damaged else 'only damaged ones:'}"
        f"{listing}\nTrain with another --out, or remove this folder to start over."
    )


def exists(root: Path) -> bool:
    """Returns whether there is any committed checkpoint, good or damaged."""
    return any(_listing(folder).is_file() for folder in _folders(root))


def read(checkpoint: Checkpoint, abstract: step_lib.TrainState) -> step_lib.TrainState:
    """Returns the whole state, with the shapes and shardings of `abstract` (ShapeDtypeStructs)."""
    if old_checkpoint.is_old(checkpoint.folder):
        return old_checkpoint.read(checkpoint.folder, abstract)
    values: dict[str, Any] = {}
    for item, flat in _items(abstract).items():
        restored = orbax_io.restore(checkpoint.folder / item, tree.unflatten(flat))
        values |= {f"{item}/{path}": leaf for path, leaf in tree.flatten(restored).items()}
    structure = jax.tree.structure(abstract)
    paths = [f"{item}/{path}" for item, path in _places(abstract)]
    return jax.tree.unflatten(structure, [values[path] for path in paths])


def read_adapters(checkpoint: Checkpoint, abstract: tree.Tree) -> dict[str, Any]:
    """Returns the trained parameters only, shaped as `abstract`: their EMA if there is one."""
    item = EMA if (checkpoint.folder / EMA).is_dir() else ADAPTERS
    if old_checkpoint.is_old(checkpoint.folder):
        return old_checkpoint.read_params(checkpoint.folder / item, abstract)
    return orbax_io.restore(checkpoint.folder / item, abstract)


def set_aside(damaged: Mapping[Path, str]) -> None:
    """Renames damaged checkpoints, so that training can write their steps again."""
    for folder in damaged:
        target = folder.with_suffix(".damaged")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(folder, target)


def _options() -> ocp.CheckpointManagerOptions:
    """Keeps every step: older ones may go only when the new one is committed, which is ours to know."""
    return ocp.CheckpointManagerOptions(
        step_format_fixed_length=8, max_to_keep=None, save_root_metadata=False
    )


def _items(state: step_lib.TrainState) -> dict[str, dict[str, Any]]:
    """Returns {item: {path: leaf}}, of values or of ShapeDtypeStructs."""
    items: dict[str, dict[str, Any]] = {}
    for (item, path), leaf in zip(_places(state), jax.tree.leaves(state), strict=True):
        items.setdefault(item, {})[path] = leaf
    return items


def _places(state: step_lib.TrainState) -> list[tuple[str, str]]:
    """Returns (item, path) of each leaf of the state, in leaf order; counters go to the optimizer."""
    places = []
    for keys, _ in jax.tree_util.tree_flatten_with_path(state)[0]:
        item, _, path = jax.tree_util.keystr(keys, simple=True, separator="/").partition("/")
        places.append((item, path) if path else (OPTIMIZER, item))
    return places


def _folders(root: Path) -> list[Path]:
    """Returns the folders that orbax has finished, newest first."""
    if not root.is_dir():
        return []
    return sorted((p for p in root.iterdir() if re.fullmatch(r"\d{8,}", p.name)), reverse=True)


def _listing(folder: Path) -> Path:
    """Returns the file that lists the size and hash of the others."""
    return folder / (old_checkpoint.META if old_checkpoint.is_old(folder) else HASHES)


def _metadata(folder: Path) -> dict[str, Any]:
    if old_checkpoint.is_old(folder):
        return json.loads((folder / old_checkpoint.META).read_text())
    return json.loads((folder / METADATA / "metadata").read_text())


def _problem(folder: Path) -> str:
    """Returns what is wrong with a checkpoint, or an empty text."""
    listing = _listing(folder)
    try:
        hashes = dict(json.loads(listing.read_text())["files"])
    except FileNotFoundError:
        return f"{listing.name} is missing: the save was killed before its commit"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{listing.name} is unreadable ({_first_line(error)})"
    for name, (size, digest) in hashes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        actual_size, actual_digest = _size_and_hash(path)
        if actual_size != size:
            return f"{name}: expected {size} bytes, got {actual_size}"
        if actual_digest != digest:
            return f"{name}: its bytes changed since it was written"
    return ""


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _size_and_hash(path: Path) -> tuple[int, str]:
    return path.stat().st_size, files_lib.file_hash(path)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
