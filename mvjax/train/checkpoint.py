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
import orbax.checkpoint as ocp

from mvjax import files as files_lib
from mvjax import tree
from mvjax.train import distributed
from mvjax.train import step as step_lib

META = "meta.json"
MEAN = "ema"
SPARE_BYTES = 2**20  # metadata and block rounding, on top of the arrays


class Found(NamedTuple):
    """A verified checkpoint; `damaged` lists the newer ones that failed, with what is wrong."""

    folder: Path
    meta: dict[str, Any]
    damaged: dict[Path, str]


class Pending:
    """A checkpoint whose values are copied, so that training may go on, and whose files are being written.

    Several processes write it together: each `begin`s it at the same step and `finish`es it.
    """

    def __init__(self, root: Path, step: int, meta: Mapping[str, Any], keep: int) -> None:
        self._root, self._meta, self._keep = root, {**meta, "step": step}, keep
        self._final = root / f"{step:08d}"
        self._partial = root / f"{step:08d}.partial"
        self._writers: list[ocp.StandardCheckpointer] = []
        self.step = step

    def begin(self, state: step_lib.TrainState) -> Pending:
        """Copies the values and starts writing; raises as the function `begin`."""
        try:
            distributed.from_first(lambda: self._make_room(state))
            with _quiet():
                parts = {"adapters": tree.flatten(state.adapters), "optimizer": _numbered(state)}
                if state.ema is not None:
                    parts[MEAN] = tree.flatten(state.ema)
                for name, flat in parts.items():
                    self._writers.append(ocp.StandardCheckpointer())
                    named = {_key(path): leaf for path, leaf in flat.items()}
                    self._writers[-1].save((self._partial / name).absolute(), named)
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self._failure(error) from error
        return self

    def finish(self) -> Path:
        """Waits until all is written, then gives it its name; raises as `begin`."""
        try:
            with _quiet():
                for writer in self._writers:
                    writer.wait_until_finished()
            if jax.process_index() == 0:
                self._publish()
        except Exception as error:
            raise self._failure(error) from error
        finally:
            self._close()
        return self._final

    def _make_room(self, state: step_lib.TrainState) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        for leftover in self._root.glob("*.partial"):
            shutil.rmtree(leftover)
        _check_space(self._root, state)
        self._partial.mkdir()

    def _publish(self) -> None:
        files = {
            str(p.relative_to(self._partial)): _size_and_hash(p) for p in _files(self._partial)
        }
        (self._partial / META).write_text(json.dumps({**self._meta, "files": files}, indent=1))
        if self._final.exists():  # the same step again, after a resume from an older one
            shutil.rmtree(self._final)
        os.replace(self._partial, self._final)
        for old in _folders(self._root)[self._keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def _failure(self, error: Exception) -> ValueError:
        self._close()
        if jax.process_index() == 0:
            shutil.rmtree(self._partial, ignore_errors=True)
        kept = [str(folder) for folder in _folders(self._root)]
        return ValueError(
            f"{self._final}: cannot write the checkpoint of step {self.step}: {_first_line(error)}\n"
            f"Earlier checkpoints are untouched: {kept or 'none yet'}. "
            "Free space or fix permissions, then run the same command to resume."
        )

    def _close(self) -> None:
        with _quiet():
            for writer in self._writers:
                with contextlib.suppress(Exception):  # what failed was told by waiting
                    writer.close()
        self._writers.clear()


def begin(root: Path, state: step_lib.TrainState, *, meta: Mapping[str, Any], keep: int) -> Pending:
    """Copies the state to the host and starts writing a checkpoint beside the others.

    It is written to a `.partial` folder, which `finish` renames, so that a kill or a full disk leaves the
    earlier ones alone; then all but the newest `keep` are removed.

    Raises:
      ValueError: if it cannot be written: what failed, and which checkpoint is still there.
    """
    return Pending(root, int(state.step), meta, keep).begin(state)


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


def read(found: Found, like: step_lib.TrainState) -> step_lib.TrainState:
    """Returns the whole state, placed and shaped as `like` (shape structs with shardings)."""
    adapters = _read_tree(found.folder / "adapters", tree.flatten(like.adapters))
    rest = _read_tree(found.folder / "optimizer", _numbered(like))
    _, structure = jax.tree.flatten(like._replace(adapters=(), ema=None))
    other = jax.tree.unflatten(structure, [rest[name] for name in sorted(rest)])
    mean = None if like.ema is None else _read_tree(found.folder / MEAN, tree.flatten(like.ema))
    ema = None if mean is None else tree.unflatten(mean)
    return other._replace(adapters=tree.unflatten(adapters), ema=ema)


def read_adapters(found: Found, like: tree.Tree) -> dict[str, Any]:
    """Returns the trained parameters only, shaped as `like`: their EMA if there is one."""
    part = MEAN if (found.folder / MEAN).is_dir() else "adapters"
    return tree.unflatten(_read_tree(found.folder / part, tree.flatten(like)))


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


def _numbered(state: step_lib.TrainState) -> dict[str, Any]:
    leaves = jax.tree.leaves(state._replace(adapters=(), ema=None))
    return {f"{i:06d}": leaf for i, leaf in enumerate(leaves)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leaves telling about errors to us: orbax would log each one several times."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _read_tree(folder: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    with _quiet(), ocp.StandardCheckpointer() as checkpointer:
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
    return path.stat().st_size, files_lib.file_hash(path)


def _check_space(root: Path, state: step_lib.TrainState) -> None:
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + SPARE_BYTES
    free = shutil.disk_usage(root).free
    if free < needed:
        raise OSError(f"needs {needed:,} bytes, the disk has {free:,} free")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
