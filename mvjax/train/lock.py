"""The lock of a run folder: one run at a time trains into it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mvjax import locks, run_folder
from mvjax.stores import lease, places
from mvjax.train import run_store


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Locks a run folder, which is made; a folder into which nothing else came is removed again.

    As `locks.held`; no child process inherits it.

    Raises:
      ValueError: naming the process that trains into the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locks.held(folder / run_folder.LOCK))
                if (url := places.url(folder)) is not None:
                    place = f"{url}/{run_folder.LOCK}"
                    held = lease.held(place, lost=lease.ends(folder))
                    stack.enter_context(held)
            except locks.Taken as taken:
                raise ValueError(
                    f"{folder}: another run trains into this folder ({taken}); stop it or wait for its"
                    " end, or choose another --out"
                ) from taken
            run_store.clean(folder / run_folder.CHECKPOINTS)
            yield
    finally:
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
