"""While processes wait for each other to start: says which have not come, by notes in the run folder."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from mvjax import messages, run_folder

TIMEOUT = 300  # seconds until a process gives up
_TICK = 2.0  # seconds between two notes of a process that waits
_REPORT = 8.0  # seconds until the first of those who wait reports


@contextlib.contextmanager
def announced(folder: Path, *, index: int, count: int, address: str) -> Iterator[None]:
    """While this waits for `count` processes to join, reports those without a note; ends the process at last.

    `address` is where the first process listens, or how the others find it.
    """
    joined = threading.Event()
    waiting = _Waiting(folder / run_folder.WAITING, index, count, address)
    thread = threading.Thread(target=waiting.watch, args=(joined,), name="joining", daemon=True)
    thread.start()
    try:
        yield
    finally:
        joined.set()
        thread.join()
        waiting.remove()


class _Waiting:
    """One process that waits for others."""

    def __init__(self, folder: Path, index: int, count: int, address: str) -> None:
        self._folder, self._index, self._count, self._address = folder, index, count, address
        self._note = self._path(index)

    def watch(self, joined: threading.Event) -> None:
        """Writes the note again and again, and reports at twice the wait each time; gives up at last."""
        due = _REPORT
        for waited in itertools.count(_TICK, _TICK):
            if joined.wait(_TICK):
                return
            with contextlib.suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._note.write_text(socket.gethostname())
            if waited >= TIMEOUT:
                self._say(f"gave up after {waited:.0f} s; start all processes again")
                os._exit(1)  # jax waits in C++, and would end in a crash
            if waited >= due:
                due = 2 * waited
                hosts = self._hosts()
                if min(hosts, default=self._index) == self._index:
                    self._say(self.report(hosts, waited))

    def report(self, hosts: dict[int, str], waited: float) -> str:
        """Says who has come and who has not."""
        missing = [index for index in range(self._count) if index not in hosts]
        came = messages.names(f"{index} ({host})" for index, host in sorted(hosts.items()))
        return (
            f"waiting for {waited:.0f} s for process {messages.names(missing)} of {self._count} to start"
            f" and reach {self._address}; here are: {came}"
        )

    def remove(self) -> None:
        """Removes the note, and the folders if nothing else is in them."""
        self._note.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()
            self._folder.parent.rmdir()

    def _hosts(self) -> dict[int, str]:
        """The hosts of those who wait, too; a note that is no longer written was left by a killed process."""
        notes, found = {index: self._path(index) for index in range(self._count)}, {}
        with contextlib.suppress(OSError):
            alive = self._note.stat().st_mtime - 4 * _TICK  # both times are the file server's
            for index, note in notes.items():
                with contextlib.suppress(OSError):
                    if note.stat().st_mtime >= alive:
                        found[index] = note.read_text(errors="replace")
        return found

    def _path(self, index: int) -> Path:
        return self._folder / f"joining-{index:05d}.txt"

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            print(f"process {self._index} of {self._count}: {text}", file=sys.stderr, flush=True)
