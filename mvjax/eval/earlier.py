"""What an earlier evaluation left under a name in RUN/eval: another one goes on with it, or is refused.

NAME.json           the result (`results`)
NAME.samples.jsonl  its answers, and NAME.samples.identity what they answer (`journal`)
NAME.lock           while an evaluation works on these
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mvjax import locks, messages
from mvjax.eval import benchmarks, journal, metrics, results
from mvjax.stores import lease, places


class Place:
    """The files of one evaluation."""

    def __init__(self, folder: Path, name: str) -> None:
        """`folder` is RUN/eval; it is made when the place is held."""
        self.folder, self.name = folder, name
        self.result = folder / f"{name}.json"
        self.samples = folder / f"{name}.samples.jsonl"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other evaluations from these files.

        Raises:
          ValueError: naming the process that works on them.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                lock = self.folder / f"{self.name}.lock"
                stack.enter_context(locks.held(lock))
                if (url := places.url(lock)) is not None:
                    stack.enter_context(lease.held(url, lost=lease.ends(self.result)))
            except locks.Taken as taken:
                raise ValueError(
                    f"{self.result}: another evaluation works on it ({taken}); wait for its end, or"
                    " give this one a name of its own with --as NAME"
                ) from taken
            yield

    def read(self) -> dict[str, Any] | None:
        """Returns the result; None if there is none.

        Raises:
          ValueError: if it is none that `mvjax eval` wrote.
        """
        try:
            result = json.loads(self.result.read_bytes())
            last = result["table"][-1]
            if last["kind"] == metrics.ALL and isinstance(result.get("samples", last["n"]), int):
                return result
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            pass
        raise ValueError(f"{self.result}: expected the result of an evaluation, got something else")

    def lost(self, facts: Mapping[str, Any], count: int, modes: Sequence[str]) -> list[str]:
        """Returns what would be lost if another evaluation took this place, in words.

        Args:
          facts: of the other one, all or some of those of `results.Asked.facts`, and its checkpoint.
          count: of its samples.
          modes: of prompts that it asks.
        """
        try:
            result = self.read()
        except ValueError:
            return ["a file that cannot be read"]
        found = [] if result is None else _losses(result, facts, count, modes)
        if (identity := journal.read_identity(self.samples)) is not None:
            found += _differences(_flat(identity), facts)
        return list(dict.fromkeys(found))

    @contextlib.contextmanager
    def opened(
        self, asked: results.Asked, count: int, modes: Sequence[str], *, again: bool
    ) -> Iterator[tuple[journal.Journal, list[str]]]:
        """Holds the files, and gives the journal and the modes to ask.

        Those of a result that is there are among them, so that it loses none.

        Args:
          asked: what, of whom.
          count: of samples.
          modes: of prompts that are asked for.
          again: what is there is removed first, result and answers together.

        Raises:
          ValueError: if another evaluation holds them, or as `check`.
        """
        with self.held():
            if again:
                self.result.unlink(missing_ok=True)
                journal.remove(self.samples)
            self.check(asked.facts() | {"checkpoint": asked.checkpoint}, count, modes)
            had = {*modes, *modes_of(self.read() or {"table": [{}]})}
            modes = [mode for mode in asked.benchmark.modes if mode in had]
            with journal.Journal(self.samples, asked.identity()) as log:
                yield log, modes

    def check(self, facts: Mapping[str, Any], count: int, modes: Sequence[str]) -> None:
        """Raises ValueError naming what `lost` returns, if anything, and the ways."""
        lost = self.lost(facts, count, modes)
        if lost:
            listed = messages.names(lost, between="; ")
            raise ValueError(
                f"{self.result}: another evaluation is there: {listed}. To keep both, give this one a name"
                f" with --as NAME: it becomes {self.folder}/NAME.json. To replace the other with its answers,"
                " add --again."
            )


def _losses(
    result: Mapping[str, Any], facts: Mapping[str, Any], count: int, modes: Sequence[str]
) -> list[str]:
    known = {name: value for name, value in facts.items() if name != "checkpoint"}
    found = _differences(_flat(result), known)
    had = result.get("samples", result["table"][-1]["n"])
    if had > count:
        found.append(f"{had} samples, now {count}")
    without = [mode for mode in modes_of(result) if mode not in modes]
    if had < count and without:
        found.append(f"prompts {messages.names(without)} (of {had} samples; ask for them, too)")
    return found


def modes_of(result: Mapping[str, Any]) -> list[str]:
    """Returns the modes of prompts that a result has scores of."""
    return [mode for mode in benchmarks.MODES if mode in result["table"][-1]]


def _flat(described: Mapping[str, Any]) -> dict[str, Any]:
    """A result's or an identity's facts, those of its protocol among them."""
    protocol = described.get("protocol")
    return {**described, **(protocol if isinstance(protocol, dict) else {})}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {old.get(name, 'unknown')!s}, now {value!s}"
        for name, value in new.items()
        if old.get(name) != value
    ]
