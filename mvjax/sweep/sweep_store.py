"""The folder of a sweep on a store: what the sweep writes is sent, what its runs sent is brought."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mvjax import locks, run_folder
from mvjax.stores import lease, places, work
from mvjax.sweep import outcome, trials
from mvjax.train import run_store

_OWN = (outcome.TRIAL, outcome.LOG)  # that a sweep writes into the folder of a run
_LONG = (run_folder.METRICS, run_folder.TENSORBOARD)


def _of_run(name: str) -> bool:
    return name.split("/")[0] not in (*_OWN, *_LONG) and run_store.pulled(name)


def _pulled(name: str) -> bool:
    steps = name.split("/")
    if len(steps) > 2:  # TRIAL/seed-N/...
        return steps[2:] in ([own] for own in _OWN) or _of_run("/".join(steps[2:]))
    return name == trials.SWEEP or steps[1:] == [trials.COST]


def _pushed(name: str) -> bool:
    return name == trials.SWEEP or name.split("/")[-1] in (trials.COST, *_OWN)


def opened(out: Path, *, dry: bool) -> contextlib.AbstractContextManager[None]:
    """As `work.opened`, of the folder of a sweep."""
    return work.opened(out, _pulled, _pushed, dry=dry)


@contextlib.contextmanager
def held(run: trials.TrialRun) -> Iterator[None]:
    """Keeps sweeps of other hosts from a run, and brings what was done of it meanwhile.

    Raises:
      locks.Taken: if one works on it, or a plain `mvjax train`.
    """
    if (url := places.url(run.folder)) is None:
        yield
        return
    with lease.held(f"{url}/{outcome.LOCK}", lost=lease.ends(run.folder)):
        if by := lease.holder(f"{url}/{run_folder.LOCK}"):
            raise locks.Taken(by)
        refresh(run)
        yield


def refresh(run: trials.TrialRun) -> None:
    """Brings what the commands of a run sent."""
    if places.url(run.folder) is not None:
        work.pull(run.folder, _of_run)
