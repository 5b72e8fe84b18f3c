"""Exports into a folder of a store: sent when they are certified, the certificate last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mvjax.export import targets
from mvjax.stores import objects, places, work
from mvjax.weights import file_names

_LARGE = (".safetensors", ".gguf", ".model")  # not needed to see what an earlier export is


@contextlib.contextmanager
def published(out: Path, target: targets.Target) -> Iterator[None]:
    """Sends the export that the block makes, if it does not raise, and removes files of an earlier one.

    The block finds the small files of what is there. Any folder but a store's is left alone.
    """
    if (url := places.url(out)) is None:
        yield
        return
    try:
        work.begin(out)
        if objects.below(url):
            work.pull(out, lambda name: "/" not in name and not name.endswith(_LARGE))
        yield
        work.deliver(out, last=lambda name: name == file_names.CERTIFICATE)
        earlier = objects.below(url).keys() & set(file_names.owned(target))
        objects.remove(f"{url}/{name}" for name in earlier if not (out / name).exists())
    finally:
        work.leave(out)
