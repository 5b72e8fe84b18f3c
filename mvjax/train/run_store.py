"""A run folder on a store: its small files here while a session lasts, pushed as they change; checkpoints.

Each process has a folder of its own here; the store is what they have in common. Metrics, events and
evaluations are pushed every `work.seconds()`, before each checkpoint, and at the end. A checkpoint is written
here by orbax, pushed with its hashes last, and removed here.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from mvjax import run_folder
from mvjax.stores import objects, places, work
from mvjax.train import checkpoint

_NEVER = (run_folder.WAITING, run_folder.LOCK)  # of this process, or objects of their own


def pulled(name: str) -> bool:
    """Whether a session needs a file of the run from the start: of checkpoints, their lists of hashes.

    In a folder of runs, their configs show that it is one.
    """
    first, *rest = name.split("/")
    if first == run_folder.CHECKPOINTS:
        return len(rest) == 2 and rest[1] in checkpoint.LISTINGS
    if first in (run_folder.EVAL, run_folder.TENSORBOARD):
        return True
    if rest:
        return rest in ([run_folder.CONFIG_JSON], [run_folder.CONFIG_TEXT])
    return first not in _NEVER


def pushed(name: str) -> bool:
    """Whether a file of the run is sent as it changes."""
    return name.split("/")[0] not in (*_NEVER, run_folder.CHECKPOINTS)


def opened(folder: Path, *, dry: bool = False) -> contextlib.AbstractContextManager[None]:
    """As `work.opened`, of a run folder."""
    return work.opened(folder, pulled, pushed, dry=dry)


def refresh(folder: Path) -> None:
    """Makes the small files those of the store."""
    if places.url(folder) is not None:
        work.pull(folder, pulled)


def send(folder: Path) -> None:
    """Sends what has changed."""
    if places.url(folder) is not None:
        work.push(folder, pushed)


def commit(folder: Path) -> None:
    """Sends a checkpoint, after all that was logged before it; only its list of hashes stays here."""
    url = places.url(folder)
    if url is None:
        return
    send(folder.parents[1])
    clean(folder.parent)
    drop(folder)  # of this step, if the run went back before it
    work.push(
        folder.parent,
        lambda name: name.startswith(f"{folder.name}/"),
        last=lambda name: name.endswith(f"/{checkpoint.HASHES}"),
    )
    for path in folder.iterdir():
        if path.name != checkpoint.HASHES:
            work.forget(path)
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def drop(folder: Path) -> None:
    """Removes a checkpoint from the store: first its list of hashes, so that no part of it counts."""
    url = places.url(folder)
    if url is None:
        return
    names = sorted(objects.below(url), key=lambda name: name not in checkpoint.LISTINGS)
    objects.remove(f"{url}/{name}" for name in names[:1])
    objects.remove(f"{url}/{name}" for name in names[1:])
    work.forget(folder)


def clean(root: Path) -> None:
    """Removes what killed saves left on the store: parts of checkpoints that have no list of hashes."""
    url = places.url(root)
    if url is None:
        return
    objects.end_uploads(url)
    names = {name: name.split("/") for name in objects.below(url)}
    whole = {
        steps[0] for steps in names.values() if steps[1:] in ([x] for x in checkpoint.LISTINGS)
    }
    objects.remove(f"{url}/{name}" for name, steps in names.items() if steps[0] not in whole)
