"""Datasets made in a folder of a store: each appears there when it is complete, its index last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mvjax.data.records import shards
from mvjax.stores import objects, places, work

_INDEX, _LISTING = ".json", ".jsonl"


@contextlib.contextmanager
def published(root: Path) -> Iterator[Path]:
    """Gives the folder to make datasets in; one of a store gets them when the block ends.

    If the block raises, the store gets only the lists of what was skipped, and keeps the datasets it has.
    """
    if places.url(root) is None:
        yield root
        return
    work.begin(root)
    try:
        try:
            yield root
        except BaseException:
            with contextlib.suppress(OSError):  # the other error counts
                work.push(root, lambda name: name.endswith(_LISTING))
            raise
        work.deliver(root, lambda name: "/" not in name, last=lambda name: name.endswith(_INDEX))
        _remove_earlier(root)
    finally:
        work.leave(root)


def _remove_earlier(root: Path) -> None:
    """Removes shards of an earlier dataset of the same name that had more or fewer of them."""
    url = places.url(root)
    assert url is not None
    here = {path.name for path in root.iterdir()}
    made = [name.removesuffix(_INDEX) for name in here if name.endswith(_INDEX)]
    stems = [stem for name in made for stem in (name, f"{name}.images")]
    earlier = [
        name
        for name in objects.below(url)
        if name not in here and any(shards.is_shard(name, stem) for stem in stems)
    ]
    objects.remove(f"{url}/{name}" for name in earlier)
