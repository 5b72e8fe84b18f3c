"""Asynchronous checkpoint saving: one save in flight, and a stated number of failed ones tolerated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import jax

from mvjax.train import checkpoint, distributed
from mvjax.train import step as step_lib


class CheckpointSaver:
    """Saves checkpoints in the background, in every process at the same steps; a context manager.

    Attributes:
      saved: the step of the last checkpoint known to be committed, or that the session began from.
    """

    def __init__(
        self, root: Path, *, keep: int, max_failed: int, saved: int, say: Callable[[str], None]
    ) -> None:
        """Nothing is written yet.

        Args:
          root: the folder of all checkpoints.
          keep: how many checkpoints to keep.
          max_failed: failed saves in a row that end the run (`train.max_failed_saves`).
          saved: the step that the session begins at.
          say: takes the message of a failed save that is tolerated, from any thread.
        """
        self.saved = saved
        self._root, self._keep, self._max_failed, self._say = root, keep, max_failed, say
        self._failed = 0  # in a row
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._in_flight: tuple[int, futures.Future[Path]] | None = None

    def save(self, state: step_lib.TrainState, metadata: Mapping[str, Any]) -> None:
        """Starts a checkpoint, once the previous one is committed; the state may be donated afterwards.

        Raises:
          ValueError: if too many in a row have failed: why the last one did, and which are still there.
            Several processes, of which one may have failed, agree on it when the next one is due.
        """
        self.settle()
        step = int(state.step)
        future = self._begin(state, metadata)
        future.add_done_callback(self._report_failure)
        self._in_flight = step, future
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
        self._count(step, error)

    def finish(self, state: step_lib.TrainState, metadata: Mapping[str, Any]) -> None:
        """Saves the last state, unless it is saved already, and waits for its commit.

        Raises:
          ValueError: if it cannot be saved.
        """
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

    def _begin(
        self, state: step_lib.TrainState, metadata: Mapping[str, Any]
    ) -> futures.Future[Path]:
        try:
            pending = checkpoint.begin(self._root, state, metadata=metadata, keep=self._keep)
        except ValueError as error:
            failed: futures.Future[Path] = futures.Future()
            failed.set_exception(error)
            return failed
        return self._thread.submit(pending.commit)

    def _report_failure(self, future: futures.Future[Path]) -> None:
        """Says at once, from any thread, that a save failed; one too many is raised instead."""
        failed = self._failed + 1
        if future.exception() and failed < self._max_failed:
            self._say(
                f"{future.exception()}\nTraining goes on: {failed} failed in a row, it stops at "
                f"{self._max_failed} (train.max_failed_saves)"
            )

    def _count(self, step: int, error: ValueError | None) -> None:
        if not distributed.anywhere(error is not None):
            self.saved, self._failed = step, 0
            return
        self._failed += 1
        if self._failed >= self._max_failed:
            raise error or ValueError(
                f"the checkpoint of step {step} failed in another process, which says why"
            )
