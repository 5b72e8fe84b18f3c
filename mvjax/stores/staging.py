"""Copies of objects on this machine: whole, verified, bounded, shared by the processes of a host.

    CACHE/staged/s3/BUCKET/KEY        the copy
    CACHE/known/s3/BUCKET/KEY.json    the object's size and tag, and the copy's SHA-256 if it was asked for
    CACHE/held/PROCESS                what a process uses, one folder a line; locked while the process lives

A copy is dropped for room, the least recently used first, unless a process uses its folder. MVJAX_CACHE_GB
bounds all copies together; without it they may fill the disk but for 1 GB.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import NamedTuple

from mvjax import locks
from mvjax.stores import objects, places

LIMIT = "MVJAX_CACHE_GB"
_RESERVE = 10**9  # bytes of the disk that stay free
_DRAFT = ".part"

_held: set[Path] = set()  # by this process
_file: list[int] = []  # its open file in held/
_mutex = threading.Lock()


class Known(NamedTuple):
    """Of a copy: what it was when it came."""

    size: int
    tag: str
    sha256: str | None
    mtime_ns: int


def here(path: Path, *, sha256: str | None = None) -> Path:
    """Returns the path of a file whose content is here: a copy of the object that a path stands for.

    Any other path, and a file that this process works on, is returned as it is. So is the path of the copy if
    there is no such object: no file is there then.

    Args:
      path: of a file.
      sha256: that the content must have; a copy that had it is not compared with the store again.

    Raises:
      ValueError: if the object has another SHA-256.
      OSError: if the store refuses or fails, or there is no room.
    """
    url = places.url(path)
    if url is None or (places.in_work(path) and path.exists()):
        return path
    copy = places.staged(url)
    hold(copy.parent)
    if sha256 is not None and _good(copy, sha256):
        return copy
    lock = places.cache() / "locks" / hashlib.sha1(url.encode()).hexdigest()
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locks.held(lock, wait=True, shared=True):  # keeps threads apart, too
        if sha256 is not None and _good(copy, sha256):
            return copy
        found = objects.stat(url)
        if found is None:
            _drop(copy)
        elif sha256 is not None or not _is(copy, found):
            _fetch(url, copy, found, sha256)
    return copy


def whole(folder: Path) -> None:
    """Makes the copies below a folder those of the store: fetches what differs, drops what is gone there."""
    url = places.url(folder)
    assert url is not None, folder
    names = objects.below(url)
    if not names:
        raise FileNotFoundError(f"{url}: no such folder: nothing lies there; check the name")
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder).as_posix() not in names:
            _drop(path)
    objects.each(here, [folder / name for name in names])


def hold(folder: Path) -> None:
    """Keeps the copies below a folder as long as this process lives."""
    with _mutex:
        if folder in _held:
            return
        held = places.cache() / "held"
        held.mkdir(parents=True, exist_ok=True)
        with locks.held(places.cache() / "held.lock", wait=True, shared=True):
            if not _file:
                file = os.open(held / places.process(), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
                fcntl.flock(file, fcntl.LOCK_EX)
                _file.append(file)
            os.write(_file[0], f"{folder}\n".encode())
        _held.add(folder)


def known(copy: Path) -> Known | None:
    """Returns what is known of a copy that is as it came; None without one."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        said = Known(**json.loads(_beside(copy).read_bytes()))
        there = copy.stat()
        if (there.st_size, there.st_mtime_ns) == (said.size, said.mtime_ns):
            return said
    return None


def _good(copy: Path, sha256: str) -> bool:
    said = known(copy)
    if said is None or said.sha256 != sha256:
        return False
    os.utime(_beside(copy))  # used now
    return True


def _is(copy: Path, found: objects.Object) -> bool:
    said = known(copy)
    if said is None or (said.size, said.tag) != found:
        return False
    os.utime(_beside(copy))
    return True


def _fetch(url: str, copy: Path, found: objects.Object, sha256: str | None) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    make_room(url, found.size)
    draft = copy.with_name(copy.name + _DRAFT)
    try:
        objects.download(url, draft)
        size = draft.stat().st_size
        if size != found.size:
            raise OSError(
                f"{url}: expected {found.size} bytes, got {size}; was it replaced? Try again"
            )
        if sha256 is not None and (got := _hash(draft)) != sha256:
            raise ValueError(
                f"{url}: expected SHA-256 {sha256}, got {got}; copy it or make it again"
            )
        said = Known(size, found.tag, sha256, draft.stat().st_mtime_ns)
        _beside(copy).parent.mkdir(parents=True, exist_ok=True)
        draft.replace(copy)
        temporary = _beside(copy).with_suffix(_DRAFT)
        temporary.write_text(json.dumps(said._asdict()))
        temporary.replace(_beside(copy))
    finally:
        draft.unlink(missing_ok=True)


def make_room(url: str, size: int) -> None:
    """Drops copies that no process uses until so many bytes fit; OSError if they do not fit even then."""
    with locks.held(places.cache() / "held.lock", wait=True, shared=True):
        short = _short(size)
        if short <= 0:
            return
        used = _used()
        for copy in sorted(_copies(), key=lambda copy: _stat(_beside(copy))[1]):
            if short <= 0:
                return
            if not any(copy.is_relative_to(folder) for folder in used):
                short -= _stat(copy)[0]
                _drop(copy)
        if short > 0:
            raise OSError(
                f"{url}: expected room for its {size:,} bytes in {places.cache()}, {short:,} are missing;"
                f" what is in use stays. Set {places.CACHE} to a folder on a larger disk, or"
                f" raise {LIMIT} ({os.environ.get(LIMIT, 'not set')})"
            )


def _short(size: int) -> int:
    """Returns how many bytes are missing for so many more."""
    disk = shutil.disk_usage(places.cache())
    short = size - (disk.free - _RESERVE)
    if given := os.environ.get(LIMIT):
        try:
            limit = int(float(given) * 1e9)
        except ValueError as error:
            raise ValueError(f"{LIMIT}={given}: expected a number of GB, such as 200") from error
        now = sum(_stat(copy)[0] for copy in _copies())
        short = max(short, now + size - limit)
    return short


def _used() -> set[Path]:
    """The folders that living processes use; what dead ones left is removed."""
    found: set[Path] = set(_held)
    for note in (places.cache() / "held").iterdir():
        if note.name == places.process():
            continue
        file = os.open(note, os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            note.unlink(missing_ok=True)
        except OSError:
            found.update(map(Path, note.read_text().splitlines()))
        finally:
            os.close(file)
    return found


def _copies() -> list[Path]:
    root = places.cache() / "known"
    names = [path.relative_to(root).with_suffix("") for path in root.rglob("*.json")]
    return [places.cache() / places.STAGED / name for name in names]


def _stat(path: Path) -> tuple[int, float]:
    """Returns size and time of a file; zeros if another process has just dropped it."""
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        return found.st_size, found.st_mtime
    return 0, 0.0


def _drop(copy: Path) -> None:
    if not copy.is_dir():
        copy.unlink(missing_ok=True)
    _beside(copy).unlink(missing_ok=True)


def _beside(copy: Path) -> Path:
    cache = places.cache()
    name = copy.relative_to(cache / places.STAGED)
    return (cache / "known" / name).with_name(f"{name.name}.json")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
