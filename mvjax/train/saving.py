"""Saving checkpoints: written by orbax in the background, one at a time, committed with their hashes."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mvjax import files as files_lib
from mvjax import tree
from mvjax.config import schema
from mvjax.stores import places
from mvjax.train import checkpoint, distributed, run_store
from mvjax.train import step as step_lib

_SPARE_BYTES = 2**20  # metadata and block rounding, on top of the arrays
_UNFINISHED = re.compile(r"\d{8,}\.(orbax-checkpoint-tmp.*|partial)")  # of a killed save


class PendingCheckpoint:
    """A checkpoint that is being written: its values are copied, so the state may be donated.

    Several processes write it together: each makes one at the same step, then calls `commit`, which may
    run in another thread.
    """

    def __init__(
        self, root: Path, state: step_lib.TrainState, *, metadata: Mapping[str, Any], keep: int
    ) -> None:
        """Copies the values to the host and starts writing into `root`, the folder of all checkpoints.

        `step` is added to the metadata, JSON values. `keep` says how many checkpoints to keep, this one
        included, once it is committed.

        Raises:
          ValueError: if it cannot be written: what failed, and which checkpoints are still there.
        """
        self.step = int(state.step)
        self._root, self._keep = root, keep
        self._folder = root / f"{self.step:08d}"
        self._manager: ocp.CheckpointManager | None = None
        # Processes have no folder in common on a store: the first one writes the checkpoint alone.
        self._alone = places.url(root) is not None and jax.process_count() > 1
        # Every step is kept: older ones may go only when the new one is committed, which is ours to know.
        options = ocp.CheckpointManagerOptions(
            step_format_fixed_length=8, max_to_keep=None, save_root_metadata=False
        )
        try:
            distributed.from_first(lambda: self._make_room(state))
            if self._alone:
                state = distributed.to_first(state)
                if jax.process_index():
                    return
                options.multiprocessing_options = ocp.options.MultiprocessingOptions(
                    primary_host=0, active_processes={0}
                )
                options.create = False
            items: dict[str, Any] = {
                name: ocp.args.StandardSave(tree.unflatten(flat))
                for name, flat in checkpoint.items(state).items()
            }
            items[checkpoint.METADATA] = ocp.args.JsonSave({**metadata, "step": self.step})
            with checkpoint.quiet_orbax():
                # One manager a save: after a failed save a manager raises that error again.
                self._manager = ocp.CheckpointManager(root.absolute(), options=options)
                self._manager.save(self.step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self._failure(error) from error

    def commit(self) -> None:
        """Waits until all is written, then writes the hashes, then removes all but the newest `keep`.

        A kill before the hashes are written leaves no checkpoint of this step and the earlier ones as
        they were. Raises as the constructor.
        """
        if self._manager is None:  # the first process writes it
            return
        try:
            with checkpoint.quiet_orbax():
                self._manager.wait_until_finished()  # orbax has renamed its temporary folder by then
            if jax.process_index() == 0:
                text = json.dumps({"files": checkpoint.hashes(self._folder)}, indent=1)
                files_lib.write_atomic(self._folder / checkpoint.HASHES, text.encode())
                run_store.commit(self._folder)
                for old in checkpoint.folders(self._root)[self._keep :]:
                    run_store.drop(old)
                    shutil.rmtree(old, ignore_errors=True)
        except Exception as error:
            raise self._failure(error) from error
        finally:
            self._close()

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
        kept = [str(folder) for folder in checkpoint.folders(self._root)]
        return ValueError(
            f"{self._folder}: cannot write the checkpoint of step {self.step}: "
            f"{checkpoint.first_line(error)}\n"
            f"Earlier checkpoints are untouched: {kept or 'none yet'}. "
            "Free space or fix permissions, then run the same command to resume."
        )

    def _close(self) -> None:
        if self._manager is not None:
            with (
                checkpoint.quiet_orbax(),
                contextlib.suppress(Exception),
            ):  # raised by waiting already
                self._manager.close()


class Schedule:
    """When checkpoints are due: every so many steps, and minutes by the first process's clock."""

    def __init__(self, settings: schema.TrainConfig, mesh: jax.sharding.Mesh) -> None:
        self._every, self._minutes = settings.checkpoint_every, settings.checkpoint_minutes
        self._request = distributed.Request(mesh, threading.Event())
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether one is due after a step; call it after each, in every process."""
        due = step % self._every == 0
        if self._minutes is not None:
            late = time.monotonic() - self._last >= 60 * self._minutes
            if late and jax.process_index() == 0:
                self._request.wished.set()
            due = self._request.granted() or due
        if due:
            self._last = time.monotonic()
            self._request.withdraw()
        return due


class CheckpointSaver:
    """Saves checkpoints in the background, in every process at the same steps; a context manager.

    `saved` is the step of the last checkpoint known to be committed, or that the session began from.
    """

    def __init__(
        self, root: Path, *, keep: int, max_failed: int, saved: int, say: Callable[[str], None]
    ) -> None:
        """Nothing is written yet.

        `max_failed` failed saves in a row end the run (`train.max_failed_saves`); `say` takes the message
        of one that is tolerated, from any thread.
        """
        self.saved = saved
        self._root, self._keep, self._max_failed, self._say = root, keep, max_failed, say
        self._failed = 0  # in a row
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: tuple[int, futures.Future[None]] | None = None

    def save(self, state: step_lib.TrainState, metadata: Mapping[str, Any]) -> None:
        """Starts a checkpoint, once the previous one is committed; the state may be donated afterwards.

        Raises:
          ValueError: if too many in a row have failed: why the last one did, and which are still there.
            Several processes, of which one may have failed, agree on it when the next one is due.
        """
        self.settle()
        future: futures.Future[None] = futures.Future()
        try:
            pending = PendingCheckpoint(self._root, state, metadata=metadata, keep=self._keep)
            future = self._thread.submit(pending.commit)
        except ValueError as error:
            future.set_exception(error)
        future.add_done_callback(self._report_failure)
        self._in_flight = int(state.step), future
        if future.done() and jax.process_count() == 1:
            self.settle()

    def settle(self) -> None:
        """Waits for the checkpoint in flight, if there is one; raises as `save`."""
        if self._in_flight is None:
            return
        (step, future), self._in_flight = self._in_flight, None
        error = future.exception()
        if error is not None and not isinstance(error, ValueError):
            raise error
        if not distributed.anywhere(error is not None):
            self.saved, self._failed = step, 0
            return
        self._failed += 1
        if self._failed >= self._max_failed:
            raise error or ValueError(
                f"the checkpoint of step {step} failed in another process, which says why"
            )

    def finish(self, state: step_lib.TrainState, metadata: Mapping[str, Any]) -> None:
        """Saves the last state, unless it is saved already, and waits for its commit; raises as `save`."""
        self.settle()
        if int(state.step) != self.saved:
            self._max_failed = 1  # no later checkpoint can make up for it
            self.save(state, metadata)
            self.settle()

    def __enter__(self) -> CheckpointSaver:
        """Nothing to open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for the thread, so that a checkpoint in flight is committed whatever else went wrong."""
        self._thread.shutdown()

    def _report_failure(self, future: futures.Future[None]) -> None:
        """Says at once, from any thread, that a save failed; one too many is raised instead."""
        failed = self._failed + 1
        if future.exception() and failed < self._max_failed:
            self._say(
                f"{future.exception()}\nTraining goes on: {failed} failed in a row, it stops at "
                f"{self._max_failed} (train.max_failed_saves)"
            )
