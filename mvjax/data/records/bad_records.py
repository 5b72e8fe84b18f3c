"""Counts and lists the bad records read in training, and stops the run when they exceed the budget."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import msgspec

from mvjax import messages

_LOG = logging.getLogger(__name__)


class _BadRecord(msgspec.Struct):
    record: str
    problem: str
    id: str | None = None


class BadRecords:
    """The bad records read so far, in all datasets; thread-safe.

    At most `budget` may be skipped. Each is logged once, also over resumes, and added to `listing` (jsonl).
    """

    def __init__(self, budget: int, listing: Path | None = None) -> None:
        self._budget, self._listing = budget, listing
        self._problems: dict[str, str] = {}
        self._lock = threading.Lock()
        if listing is not None and listing.is_file():
            self._problems = _read(listing)

    def add(self, record: str, error: ValueError, *, id: str | None = None) -> None:
        """Counts a record, DATASET[number], once; past the budget raises ValueError, listing all."""
        with self._lock:
            if record not in self._problems:
                self._problems[record] = str(error)
                count = len(self._problems)
                _LOG.warning("skipping bad record %s (%d so far): %s", record, count, error)
                if self._listing is not None:
                    self._listing.parent.mkdir(parents=True, exist_ok=True)
                    with self._listing.open("ab") as file:
                        file.write(msgspec.json.encode(_BadRecord(record, str(error), id)) + b"\n")
            if len(self._problems) > self._budget:
                listed = (f"{name}: {why}" for name, why in sorted(self._problems.items()))
                raise ValueError(
                    f"data: at most {self._budget} bad records (data.bad_record_budget), got "
                    f"{len(self._problems)}; repair the files or raise the budget:"
                    + messages.lines(listed)
                ) from error


def _read(listing: Path) -> dict[str, str]:
    """The records of a list with their problems; a damaged line costs no more than a warning."""
    problems = {}
    decoder = msgspec.json.Decoder(_BadRecord)
    for number, line in enumerate(listing.read_bytes().splitlines(keepends=True), start=1):
        try:
            found = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if line.endswith(b"\n"):  # a killed run may cut off the last line
                _LOG.warning("%s:%d: expected a bad record, left out: %s", listing, number, error)
            continue
        problems[found.record] = found.problem
    return problems
