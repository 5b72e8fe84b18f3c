"""Captions that dialogues are written about: a JSONL of {id, caption, image, facts}, or ingested records."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mvjax import files
from mvjax.data.records import dataset
from mvjax.dialogues import store

LONGEST = 1000  # characters; longer captions are cut after a sentence (the reference's limit)


class CaptionLine(msgspec.Struct, frozen=True):
    """One line of a JSONL of captions."""

    id: str  # unique within the file
    caption: str  # what the picture shows, in sentences, as detailed as possible
    image: str | None = None  # a file, relative to the folder of the JSONL
    facts: dict[str, str | int] | None = None  # kept with the dialogues


class Caption(CaptionLine, frozen=True):
    """A caption of either source; `image` may also be an encoded image."""

    image: str | bytes | None = None


def read(source: Path, *, bad: store.Bad = store.stop) -> Iterator[Caption]:
    """The captions of a source, in order; in records, the assistant's turns are the caption.

    `bad` is told the lines that are no captions, and damaged records.

    Raises:
      ValueError: if `bad` does.
      FileNotFoundError: if there is no such source.
    """
    if source.suffix == ".jsonl":
        captions = _from_jsonl(source, bad)
    elif dataset.index_path(source).is_file():
        captions = _from_records(source, bad)
    else:
        raise FileNotFoundError(
            f"{source}: expected captions in a FILE.jsonl, or records: there is no"
            f" {dataset.index_path(source)}; make some by `mvjax data ingest`"
        )
    for caption in captions:
        yield msgspec.structs.replace(caption, caption=shorten(caption.caption))


def shorten(text: str, *, longest: int = LONGEST) -> str:
    """One line of at most `longest` characters, cut after a sentence, or after a word."""
    text = " ".join(text.split())
    if len(text) <= longest:
        return text
    ends = [m.end() for m in re.finditer(r"[.!?](?=\s)", text[: longest + 1])]
    return text[: ends[-1]] if ends else text[:longest].rpartition(" ")[0]


def picture(caption: Caption, *, source: Path, out: Path) -> str | None:
    """The picture's file (bytes become one beside `out`), relative to `out`'s folder.

    Raises:
      FileNotFoundError: if the caption names a file that is not there.
    """
    if caption.image is None:
        return None
    if isinstance(caption.image, str):
        path = source.parent / caption.image
        if not path.is_file():
            raise FileNotFoundError(
                f"no such picture {path}; 'image' is a path relative to the file of captions"
            )
        return os.path.relpath(path, out.parent)
    suffix = next(s for magic, s in _MAGIC.items() if caption.image.startswith(magic))
    name = hashlib.sha256(caption.image).hexdigest()[:32]  # one file for all captions of a picture
    path = out.with_name(f"{out.stem}_images") / f"{name}{suffix}"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        files.write_atomic(path, caption.image)
    return os.path.relpath(path, out.parent)


_MAGIC = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif", b"": ".img"}


def _from_jsonl(source: Path, bad: store.Bad) -> Iterator[Caption]:
    seen: set[str] = set()
    form = '{"id": ..., "caption": ..., "image": ...}'
    for place, line in store.json_lines(source, CaptionLine, expected=form, bad=bad):
        if not line.caption.strip() or not line.id or line.id in seen:
            bad(place, f"expected a caption with an id of its own, got {line}")
            continue
        seen.add(line.id)
        yield Caption(**msgspec.structs.asdict(line))


def _from_records(source: Path, bad: store.Bad) -> Iterator[Caption]:
    reader = dataset.RecordReader(source, expected=None)
    for number in range(len(reader)):
        try:
            record = reader[number]
        except ValueError as error:
            bad(f"{source} record {number}", str(error))
            continue
        said = " ".join(turn.text for turn in record.turns if turn.speaker == "assistant")
        if said:
            yield Caption(record.id, said, record.image, record.facts)
