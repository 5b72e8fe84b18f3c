"""Counts and lists the bad records read in training, and stops the run when they exceed the budget."""

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
    """The bad records read so far, in all datasets; thread-safe.

    Args:
      budget: how many may be skipped.
      listing: a jsonl to which each is appended once, also over resumes; None: they are only logged.
    """

    def __init__(self, budget: int, listing: Path | None = None) -> None:
        self._budget, self._listing = budget, listing
        self._problems: dict[str, str] = {}
        self._lock = threading.Lock()
        if listing is not None and listing.is_file():
            self._problems = {line.record: line.problem for line in _read(listing)}

    def add(self, record: str, error: ValueError, *, id: str | None = None) -> None:
        """Counts a bad record, unless it was counted before.

        Args:
          record: DATASET[number].
          error: what is wrong with it.
          id: of the record, if it can be read.

        Raises:
          ValueError: past the budget, listing all bad records.
        """
        with self._lock:
            if record not in self._problems:
                self._problems[record] = str(error)
                count = len(self._problems)
                _LOG.warning("skipping bad record %s (%d so far): %s", record, count, error)
                self._write(_BadRecord(record, self._problems[record], id))
            if len(self._problems) > self._budget:
                listed = "\n  ".join(
                    f"{name}: {why}" for name, why in sorted(self._problems.items())
                )
                raise ValueError(
                    f"data: at most {self._budget} bad records (data.bad_record_budget), got "
                    f"{len(self._problems)}; repair the files or raise the budget:\n  {listed}"
                ) from error

    def _write(self, line: _BadRecord) -> None:
        if self._listing is None:
            return
        self._listing.parent.mkdir(parents=True, exist_ok=True)
        with self._listing.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")


def _read(listing: Path) -> list[_BadRecord]:
    """The complete lines; the last may be cut off, as when a run is killed."""
    whole = listing.read_bytes().split(b"\n")[:-1]
    try:
        return [msgspec.json.decode(line, type=_BadRecord) for line in whole if line]
    except msgspec.MsgspecError as error:
        raise ValueError(
            f"{listing}: expected a bad record a line: {error}; move the file away"
        ) from error
