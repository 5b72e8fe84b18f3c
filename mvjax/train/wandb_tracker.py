"""Weights & Biases as a tracker: `train.trackers=("tensorboard", "wandb")`, extra `wandb`.

Its own variables say the rest: WANDB_PROJECT (mvjax), WANDB_ENTITY, WANDB_MODE=offline, ... RUN/wandb.json
keeps the run's id, so that a resumed run is the same run there, and the last step that it has for certain:
what is done again after a rollback is not sent again. After a kill, that may be the last seconds' lines.
"""

from __future__ import annotations

import collections
import json
import math
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvjax import files, run_folder
from mvjax.config import schema
from mvjax.config import text as config_text
from mvjax.stores import staging
from mvjax.train import trackers

_START = 60.0  # seconds that starting may take, as without a network
_WRITTEN = (
    10.0  # seconds after which a line has left the buffers of wandb's process, which die with ours
)


class Wandb:
    """A run of Weights & Biases; its local files are below RUN/wandb."""

    def __init__(self, run: schema.Config, folder: Path) -> None:
        """Starts it, or goes on with it.

        Raises:
          ModuleNotFoundError: if wandb is not installed.
          ValueError: if nobody is logged in.
        """
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("needs wandb: pip install 'mvjax[wandb]'") from error
        online = wandb.setup().settings.mode == "online"
        if online and not wandb.login(prompt=False):
            raise ValueError(
                "nobody is logged in: `wandb login` or WANDB_API_KEY; or WANDB_MODE=offline, and"
                f" `wandb sync {folder}/wandb/offline-*` later"
            )
        self._wandb, self._file = wandb, folder / run_folder.WANDB
        self._id, self._sent = _state(self._file) or (secrets.token_hex(4), 0)
        self._resumed_at = self._sent
        self._buffered: collections.deque[tuple[float, int]] = collections.deque()  # time, step
        name, group = _names(folder)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mvjax"),
            id=self._id,
            resume="allow" if online else None,
            dir=folder,
            config=config_text.to_json(run),
            allow_val_change=True,
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=_START, finish_timeout=trackers.CLOSING
            ),
            name=name,
            group=group,
        )
        self._save(before=-math.inf)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Logs the curves of a step."""
        if step > self._resumed_at:
            self._run.log(trackers.scalars(metrics), step=step)
            self._buffered.append((time.monotonic(), step))
            self._save(before=time.monotonic() - _WRITTEN)

    def table(self, step: int, name: str, rows: Sequence[trackers.Row]) -> None:
        """Logs a table, and the sounds in it as NAME/sounds, with what their rows say."""
        if step <= self._resumed_at:
            return
        columns, cells = trackers.cells(rows)
        table = self._wandb.Table(columns=columns, data=cells, allow_mixed_types=True)
        self._run.log({name: table}, step=step)
        sounds = [
            self._wandb.Audio(str(sound.path), caption=" | ".join(map(str, line)))
            for row, line in zip(rows, cells, strict=True)
            for sound in trackers.sounds(row)
        ]
        if sounds:
            self._run.log({f"{name}/sounds": sounds}, step=step)

    def close(self) -> None:
        """Waits until all is written, or sent."""
        self._run.finish()
        self._save(before=math.inf)

    def _save(self, *, before: float) -> None:
        """Writes the id, and the last step that was logged before a time."""
        while self._buffered and self._buffered[0][0] <= before:
            self._sent = self._buffered.popleft()[1]
        content = json.dumps({"id": self._id, "step": self._sent})
        files.write_atomic(self._file, f"{content}\n".encode())


def _state(path: Path) -> tuple[str, int] | None:
    """Returns id and last step of an earlier session; None of a new run, or if the file is damaged."""
    try:
        state = json.loads(path.read_bytes())
        return str(state["id"]), int(state["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _names(folder: Path) -> tuple[str, str | None]:
    """The name that Weights & Biases shows, and the group: of a trial of a sweep, the sweep."""
    folder = folder.absolute()
    sweep = folder.parent.parent
    if staging.here(sweep / run_folder.SWEEP).exists():
        return f"{folder.parent.name}/{folder.name}", sweep.name
    return folder.name, None
