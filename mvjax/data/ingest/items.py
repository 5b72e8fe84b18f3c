"""What readers of published datasets share: items, loading their images, and the list of skipped items."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import TypeVar

import msgspec

from mvjax import messages, run_folder
from mvjax.data import images
from mvjax.data.records import dataset

T = TypeVar("T")
_PREFETCH = 4  # items per thread
_SHOWN = 3  # skipped items in the message that nothing could be read


@dataclasses.dataclass(frozen=True)
class Item:
    """One sample of a dataset of images and text, as its files have it."""

    id: str  # unique within the dataset, and stable over readings
    image: Path | bytes
    turns: tuple[dataset.Turn, ...]  # by `templates`
    kinds: tuple[str, ...]  # of questions, for statistics
    facts: Mapping[str, str | int]  # the dataset's own ids, and all accepted answers, one a line


class NothingRead(ValueError):
    """No item of a dataset could be read."""

    exit_status = 1  # of a command: its arguments are as they should be, the files are not


class SkippedItems(contextlib.AbstractContextManager):
    """Counts skipped items by reason and lists them in `listing` as they come, one JSON object a line.

    More than `budget` skipped items end the reading. `trimmed` counts what was left out of kept items.
    """

    def __init__(self, listing: Path | None = None, *, budget: int | None = None):
        self.counts: collections.Counter[str] = collections.Counter()
        self.trimmed: collections.Counter[str] = collections.Counter()
        self.examples: dict[str, str] = {}  # by reason: the first that was skipped for it
        self._first: list[str] = []
        self._path, self._budget = listing, budget
        self._file = listing.open("w", encoding="utf-8") if listing else None

    def add(self, place: str, reason: str, detail: object = "") -> None:
        """Counts and lists one item by id, or by file and line; raises ValueError past the budget."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, f"{place}: {detail}")
        if self.counts.total() <= _SHOWN:
            self._first.append(f"{place}: {detail}")
        self._list(place, reason, detail)
        if self._budget is not None and self.counts.total() > self._budget:
            raise ValueError(
                f"at most {messages.counted(self._budget, 'item')} may be skipped, got {self.summary()}; the"
                f" last is {place}: {detail}{self._listed()}; repair the files or raise the budget"
            )

    def trim(self, place: str, what: str, count: int) -> None:
        """Counts and lists `count` parts, such as words, that were left out of an item that is kept."""
        if count:
            self.trimmed[what] += count
            self._list(place, what, count)

    def summary(self) -> str:
        """All reasons with their counts, such as "3 missing image, 1 empty caption"."""
        return ", ".join(f"{n} {reason}" for reason, n in self.counts.most_common()) or "none"

    def report(self) -> None:
        """Prints what was skipped and trimmed, if anything was."""
        parts = [f"skipped: {self.summary()}"] if self.counts else []
        parts += [f"left out: {count} {what}" for what, count in self.trimmed.items()]
        if parts:
            print(f"{'; '.join(parts)}{self._listed()}")

    def refuse_nothing_read(self, source: Path) -> None:
        """Raises NothingRead with the reasons."""
        raise NothingRead(
            f"{source}: expected at least one whole item, got none; skipped: {self.summary()}"
            f"{self._listed()}; are the source and its folders the right ones?{messages.lines(self._first)}"
        )

    def close(self) -> None:
        """Closes the list."""
        if self._file:
            self._file.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _list(self, place: str, reason: str, detail: object) -> None:
        if self._file:
            line = {"id": _writable(place), "reason": reason, "detail": _writable(str(detail))}
            self._file.write(msgspec.json.encode(line).decode() + "\n")

    def _listed(self) -> str:
        if not self._file:
            return ""
        if not self._file.closed:
            self._file.flush()
        return f"; listed in {self._path}"


def bad_records(dataset: Path) -> Path:
    """ROOT/NAME.bad_records.jsonl: where the items that were skipped for ROOT/NAME are listed."""
    return dataset.with_name(f"{dataset.name}.{run_folder.BAD_RECORDS}")


def records_of(
    items: Iterable[Item], skips: SkippedItems, *, workers: int = 4
) -> Generator[dataset.Record, None, None]:
    """Yields items with good images as text-only records, in order; threads prefetch the images."""
    with futures.ThreadPoolExecutor(workers) as pool:
        # Datasets list the questions of an image one after the other: it is read once.
        groups = itertools.groupby(items, key=lambda item: item.image)
        read = ((pool.submit(load_image, image), group) for image, group in groups)
        loading = ((item, data) for data, group in read for item in group)
        for item, data in delayed(loading, _PREFETCH * workers - 1):
            try:
                image = data.result()
            except FileNotFoundError as error:
                skips.add(item.id, "missing image", error)
            except (ValueError, OSError) as error:
                place = item.image
                if isinstance(place, bytes):
                    place = f"{len(place)} bytes in the dataset's file"
                skips.add(item.id, "unreadable image", f"{place}: {error}")
            else:
                facts = dict(item.facts)
                yield dataset.Record(item.id, item.kinds, item.turns, facts=facts, image=image)


def delayed(entries: Iterable[T], count: int) -> Iterator[T]:
    """Yields entries in order, each when `count` more have been taken: work begun in them goes on."""
    waiting: collections.deque[T] = collections.deque()
    for entry in entries:
        waiting.append(entry)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def load_image(image: Path | bytes) -> bytes:
    """Reads an encoded image and checks that it decodes; ValueError if it is too large or damaged."""
    if isinstance(image, Path):
        if not image.is_file():
            raise FileNotFoundError(f"{image}: no such file")
        if image.stat().st_size > dataset.LIMITS.image_bytes:
            raise ValueError(
                f"at most {dataset.LIMITS.image_bytes} bytes, got {image.stat().st_size}"
            )
        image = image.read_bytes()
    images.decode(image, limits=dataset.LIMITS)
    return image


def _writable(text: str) -> str:
    """Replaces lone surrogates, which file names may have, by "?"."""
    return text.encode("utf-8", "replace").decode()
