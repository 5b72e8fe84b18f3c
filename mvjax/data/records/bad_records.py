"""Counts the bad records that training meets, lists them, and stops the run past the budget."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import msgspec

_LOG = logging.getLogger(__name__)


class _BadRecord(msgspec.Struct):
    record: str
    problem: str
    id: str | None = None


class BadRecords:
    """The bad records met so far, in all datasets; threads may share it.

    Args:
      budget: how many may be skipped.
      listing: a jsonl that each is appended to, once, also when the run is resumed; None: only logged.
    """

    def __init__(self, budget: int, listing: Path | None = None) -> None:
        self._budget, self._listing = budget, listing
        self._found: dict[str, str] = {}
        self._lock = threading.Lock()
        if listing is not None and listing.is_file():
            self._found = {line.record: line.problem for line in _read(listing)}

    def add(self, record: str, error: ValueError, *, id: str | None = None) -> None:
        """Counts one; a record that was met before counts once.

        Args:
          record: DATASET[number].
          error: what is wrong with it.
          id: its own, if that could be read.

        Raises:
          ValueError: past the budget, with the whole list.
        """
        with self._lock:
            if record not in self._found:
                self._found[record] = str(error)
                count = len(self._found)
                _LOG.warning("skipping bad record %s (%d so far): %s", record, count, error)
                self._write(_BadRecord(record, self._found[record], id))
            if len(self._found) > self._budget:
                listed = "\n  ".join(f"{name}: {why}" for name, why in sorted(self._found.items()))
                raise ValueError(
                    f"data: at most {self._budget} bad records (data.bad_record_budget), got "
                    f"{len(self._found)}; repair the files or raise the budget:\n  {listed}"
                ) from error

    def _write(self, line: _BadRecord) -> None:
        if self._listing is None:
            return
        self._listing.parent.mkdir(parents=True, exist_ok=True)
        with self._listing.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")


def _read(listing: Path) -> list[_BadRecord]:
    """The whole lines; the last may have been cut short when a run was killed."""
    whole = listing.read_bytes().split(b"\n")[:-1]
    try:
        return [msgspec.json.decode(line, type=_BadRecord) for line in whole if line]
    except msgspec.MsgspecError as error:
        raise ValueError(
            f"{listing}: expected a bad record a line: {error}; move the file away"
        ) from error
