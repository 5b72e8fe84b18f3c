"""Reads the files of published datasets: typed JSON, Parquet row by row, images in folders."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from mvjax import messages
from mvjax.data.ingest import items

T = TypeVar("T")
Row = TypeVar("Row", bound=msgspec.Struct)
_LONGEST = 200  # characters of a file name; longer ones are errors to the system
# What msgspec raises for damaged JSON, the last for brackets within brackets within ...
DAMAGE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", "")


class Media(msgspec.Struct):
    """An image or a sound in a Parquet file of the Hugging Face hub: {"bytes": ..., "path": ...}."""

    content: bytes | None = msgspec.field(name="bytes")


def the_file(source: Path, *names: str) -> Path:
    """The first of `names` that is a file below `source`, or `source` itself; else FileNotFoundError."""
    for name in names:
        if source.is_file() and source.name == Path(name).name:
            return source
        if (source / name).is_file():
            return source / name
    raise FileNotFoundError(
        f"{source}: expected {' or '.join(names)} in it, found {_contents(source)}"
    )


def the_files(source: Path, *patterns: str) -> list[Path]:
    """The files of the first pattern of `Path.glob` that matches any, by name; else FileNotFoundError."""
    for pattern in patterns:
        paths = sorted(path for path in source.glob(pattern) if path.is_file())
        if paths:
            return paths
    raise FileNotFoundError(
        f"{source}: expected files {' or '.join(patterns)} in it, found {_contents(source)}"
    )


def decode_json(path: Path, decoder: msgspec.json.Decoder[T]) -> T:
    """Decodes a JSON file, ignoring unknown fields; raises ValueError naming the file and the place in it."""
    try:
        return decoder.decode(without_mark(path.read_bytes()))
    except DAMAGE as error:
        raise ValueError(
            f"{path}: not as this dataset was published: {error}; is it the right file, and whole?"
        ) from error


def json_entries(
    path: Path, entries: Iterable[msgspec.Raw], kind: type[T], skips: items.SkippedItems
) -> Iterator[T]:
    """Decodes the entries of a list in a JSON file, one by one; those that are no `kind` are skipped."""
    decoder = msgspec.json.Decoder(kind)
    for number, entry in enumerate(entries):
        try:
            yield decoder.decode(entry)
        except DAMAGE as error:
            skips.add(f"{path.name}:{number}", "damaged entry", error)


def json_lines(
    path: Path, decoder: msgspec.json.Decoder[T], skips: items.SkippedItems
) -> Iterator[tuple[str, T]]:
    """Decodes a file of one JSON object a line; yields (place, object); bad lines are skipped."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                place = f"{path.name}:{number}"
                line = without_mark(line) if number == 1 else line
                try:
                    if line.strip():
                        yield place, decoder.decode(line)
                except DAMAGE as error:
                    skips.add(place, "damaged line", error)
    except OSError as error:
        skips.add(path.name, "unreadable file", error)


def without_mark(content: bytes) -> bytes:
    """The bytes of a text without a byte order mark, which editors put before UTF-8."""
    return content.removeprefix(codecs.BOM_UTF8)


def parquet_rows(
    paths: Sequence[Path], kind: type[Row], skips: items.SkippedItems, *, rows_at_once: int = 64
) -> Iterator[tuple[str, Row]]:
    """Yields (file:row, struct) of the columns that are fields of `kind`, a msgspec.Struct.

    A row with other types is skipped, and a damaged file from the damage on. Raises ValueError if a file
    lacks a column.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{paths[0]}: Parquet files need pyarrow: pip install "mvjax[data]"'
        ) from error
    columns = [field.encode_name for field in msgspec.structs.fields(kind)]
    for path in paths:
        row = 0
        try:
            with parquet.ParquetFile(path) as file:
                have = file.schema_arrow.names
                missing = [name for name in columns if name not in have]
                if missing:
                    lacks, has = messages.names(missing), messages.names(have)
                    raise ValueError(f"{path}: expected columns {lacks}, it has {has}")
                for batch in file.iter_batches(rows_at_once, columns=columns):
                    for n in range(batch.num_rows):
                        place = f"{path.name}:{row}"
                        row += 1
                        try:
                            (values,) = batch.slice(n, 1).to_pylist()
                            yield place, msgspec.convert(values, kind)
                        except (msgspec.ValidationError, UnicodeDecodeError) as error:
                            skips.add(place, "damaged row", error)
        except (pyarrow.ArrowException, OSError) as error:
            skips.add(f"{path.name}:{row}", "damaged file", error)


def find_image(folders: Sequence[Path], name: str, *, suffixes: Sequence[str] = ("",)) -> Path:
    """The file `name` (with one of `suffixes`) in the first folder that has it.

    If there is none, the path that it should have, for the list of missing images.
    """
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or max(map(len, parts)) > _LONGEST:
        return Path(f"(not a name inside the image folders) {name[:_LONGEST]}")
    candidates = [folder / f"{name}{suffix}" for folder in folders for suffix in suffixes]
    return next((path for path in candidates if path.is_file()), candidates[0])


def check_folders(folders: Sequence[Path]) -> None:
    """Raises FileNotFoundError if folders are missing, before every image is skipped as missing."""
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(
            f"expected image folders, got {messages.names(missing)};"
            " name them with --images, or unpack the images"
        )


def _contents(source: Path) -> str:
    if not source.exists():
        return "no such folder"
    if source.is_file():
        return f"a file {source.name}"
    names = (f"{path.name}/" if path.is_dir() else path.name for path in source.iterdir())
    return messages.names(sorted(names), shown=8)
