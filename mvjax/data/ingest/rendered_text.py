"""RenderedText: pictures of handwriting-like text, one record a picture.

Published on huggingface.co as wendlerc/RenderedText, in WebDataset form: tar shards (`000000.tar`, ..., and
`remaining/*.tar`) with `KEY.png` beside `KEY.json`, whose `ocr_annotation.text` lists the lines of text.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from mvjax.data.ingest import items, sources, templates
from mvjax.data.records import dataset


class _Ocr(msgspec.Struct):
    text: list[str]


class _Annotation(msgspec.Struct):
    ocr_annotation: _Ocr


def read(
    source: Path, *, split: str, images: Sequence[Path], skips: items.SkippedItems
) -> Iterator[items.Item]:
    """Yields the pictures; there is one split, and images are in the shards."""
    del split, images
    for shard in sources.the_files(source, "**/*.tar"):
        for key, members in _samples(shard, skips):
            name = f"rendered-text-{key}"
            if not {".png", ".json"} <= members.keys():
                skips.add(name, "incomplete sample", f"{shard.name} has {sorted(members)} of it")
                continue
            try:
                annotation = msgspec.json.decode(
                    sources.without_mark(members[".json"]), type=_Annotation
                )
            except sources.DAMAGE as error:
                skips.add(name, "damaged annotation", f"{shard.name}: {error}")
                continue
            if not "".join(annotation.ocr_annotation.text).strip():
                skips.add(name, "empty text", shard.name)
                continue
            turns = templates.rendered_text(name, annotation.ocr_annotation.text)
            yield items.Item(name, members[".png"], turns, ("reading",), {"shard": shard.name})


def _samples(shard: Path, skips: items.SkippedItems) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, suffix -> bytes) of members that follow each other and differ in suffix only."""
    key, members = "", {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if not member.isfile() or path.name.startswith("."):
                    continue
                if member.size > dataset.LIMITS.image_bytes:
                    skips.add(f"{shard.name}:{member.name}", "file too large", member.size)
                    continue
                here = str(path.with_suffix(""))
                if here != key and members:
                    yield key, members
                    members = {}
                key = here
                file = archive.extractfile(member)
                members[path.suffix] = file.read() if file else b""
        with shard.open("rb") as file:
            file.seek(archive.offset)  # `tarfile` takes a header that is cut for the end
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("expected a block of zeros at its end; it is truncated")
    except (tarfile.TarError, OSError, EOFError) as error:
        skips.add(shard.name, "damaged file", error)
    if members:
        yield key, members
