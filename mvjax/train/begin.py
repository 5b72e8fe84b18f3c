"""Begins a session of a run: checks its folder, opens weights and records, and says what it goes on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from mvjax import messages, run_folder, tree, types
from mvjax.config import schema
from mvjax.config import text as config_text
from mvjax.data import mixing, mixture
from mvjax.train import distributed, load, memory, optim, resume, sharding
from mvjax.train import phases as phases_lib
from mvjax.train import step as step_lib


@runtime_checkable
class Data(Protocol):
    """The batches of a run by step, this process's rows of each: a pure function of the step."""

    def __getitem__(self, step: int, /) -> types.Batch:
        """Returns the batch of one step, counted from 0."""
        ...

    def ids(self, step: int, /) -> dict[str, list[str]]:
        """Returns the sample ids of that batch by part, for messages."""
        ...


class Session(NamedTuple):
    """What a session of a run begins with; every checkpoint records `meta`."""

    run: schema.Config
    folder: Path
    mesh: jax.sharding.Mesh
    data: Data
    state: step_lib.TrainState
    frozen: tree.Tree
    meta: dict[str, Any]


def session(
    run: schema.Config,
    folder: Path,
    mesh: jax.sharding.Mesh,
    watchdog: phases_lib.Watchdog,
    *,
    data: Data | None,
    extend: bool,
    warm_start: run_folder.RunStep | None,
) -> tuple[Session, list[str]]:
    """Resumes or starts a run, and writes its config into the folder; returns notices for the user too."""
    if mesh.devices.flat[0].platform == "cpu":
        memory.keep_freed()
    sharding.check_rows(run.data, mesh)
    optim.make(run.optim, steps=run.train.steps)  # a schedule that cannot be is refused here
    with watchdog.starting("the frozen weight files"):
        files = load.open_frozen(run)
    changed = distributed.from_first(lambda: resume.check_config(folder, run, extend=extend))
    with watchdog.starting("the parameters on the devices"):
        start = resume.start(run, folder, mesh, files, warm_start=warm_start)
    path, step = folder / run_folder.MIXTURE, int(start.state.step)
    history, changes = mixing.resume(path, run.data, step)
    records = {}
    if data is None:  # the slow part, after all that can fail
        with watchdog.starting("the records"):
            data = mixture_of(run, folder, mesh, history)
            records = distributed.from_first(lambda: mixture.records_identity(run.data))
        resume.check_records(start.records, records, folder=folder)
    distributed.from_first(lambda: resume.write_config(folder, run))
    distributed.from_first(lambda: mixing.write(path, history))
    with watchdog.starting("the hash of the frozen parameters"):
        frozen_hash = load.tree_hash(start.frozen)
    meta = {
        "config": config_text.to_text(run),
        "frozen": files.identity,
        "frozen_hash": frozen_hash,
        "records": start.records | records,
        "warm_start": start.warm_start,
    }
    place, count = sharding.describe(mesh), jax.process_count()
    if count > 1:
        place += f", {count} processes"
    then = "on Ctrl-C or SIGTERM the run finishes its step, saves a checkpoint and exits 0"
    if step >= run.train.steps:
        then = "nothing to train: all steps are done"
    notices = [
        f"{folder}: {start.notice}; {messages.counted(run.train.steps, 'step')} on {place}",
        changed,
        then,
        changes,
    ]
    begun = Session(run, folder, mesh, data, start.state, start.frozen, meta)
    return begun, [notice for notice in notices if notice]


def mixture_of(
    run: schema.Config, folder: Path | None, mesh: jax.sharding.Mesh, history: mixing.History
) -> Data:
    """This process's rows of the mixture; the first process makes the records if they are missing.

    `folder` gets the list of bad records.
    """
    distributed.from_first(lambda: mixture.ensure_records(run.data))
    feed = distributed.BatchFeed(mesh)
    return mixture.batches(
        run,
        process_index=feed.index,
        process_count=feed.count,
        history=history,
        listing=folder and folder / run_folder.bad_records(feed.index),
    )
