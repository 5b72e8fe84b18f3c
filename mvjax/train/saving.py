"""Saves while training goes on: one checkpoint in flight, and some that fail before the run does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import jax

from mvjax.train import checkpoint, distributed
from mvjax.train import step as step_lib


class CheckpointSaver:
    """Starts checkpoints and keeps their score, in every process at the same steps; a context manager.

    Attributes:
      saved: the step of the last checkpoint that is known to be good, or that the run began from.
    """

    def __init__(
        self, root: Path, *, keep: int, max_failed: int, saved: int, say: Callable[[str], None]
    ) -> None:
        """A run at step `saved`, whose checkpoints lie in `root`; failures are told to `say`."""
        self.saved = saved
        self._root, self._keep, self._max_failed, self._say = root, keep, max_failed, say
        self._failed = 0
        self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._flight: tuple[int, futures.Future[Path]] | None = None

    def save(self, state: step_lib.TrainState, meta: Mapping[str, Any]) -> None:
        """Starts a checkpoint, once the one before is finished; the state may be donated afterwards.

        Raises:
          ValueError: if too many in a row have failed; what failed last, and what is still there. Several
            processes, of which one may have failed, agree on it when the next one is due.
        """
        self.settle()
        step = int(state.step)
        future = self._begin(state, meta)
        future.add_done_callback(self._tell)
        self._flight = step, future
        if future.done() and jax.process_count() == 1:
            self.settle()

    def settle(self) -> None:
        """Waits for the checkpoint in flight, if there is one; raises as `save`."""
        if self._flight is None:
            return
        (step, future), self._flight = self._flight, None
        error = future.exception()
        if error is not None and not isinstance(error, ValueError):
            raise error
        self._count(step, error)

    def finish(self, state: step_lib.TrainState, meta: Mapping[str, Any]) -> None:
        """Makes sure that this last state is saved.

        Raises:
          ValueError: if it is not.
        """
        self.settle()
        if int(state.step) != self.saved:
            self._max_failed = 1  # nothing comes after it
            self.save(state, meta)
            self.settle()

    def __enter__(self) -> CheckpointSaver:
        """Nothing to open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for the thread, so that a checkpoint in flight is finished whatever else went wrong."""
        self._thread.shutdown()

    def _begin(self, state: step_lib.TrainState, meta: Mapping[str, Any]) -> futures.Future[Path]:
        try:
            pending = checkpoint.begin(self._root, state, meta=meta, keep=self._keep)
        except ValueError as error:
            failed: futures.Future[Path] = futures.Future()
            failed.set_exception(error)
            return failed
        return self._thread.submit(pending.finish)

    def _tell(self, future: futures.Future[Path]) -> None:
        """Says at once, from whatever thread, that a checkpoint failed; one too many is raised instead."""
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
