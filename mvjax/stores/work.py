"""Folders of a store that this process works on: pulled, written here, and pushed; the store has the truth.

A folder has one home on this machine, private to the process and gone with it. Readers of the store see whole
objects only; what makes a folder valid (a marker: the index of a dataset, the hashes of a checkpoint) is
pushed last, and an earlier marker is removed before anything that it lists is replaced.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mvjax.stores import objects, places

INTERVAL = "MVJAX_PUSH_SECONDS"  # between two pushes of what a run logs
_SECONDS = 30.0
_DRAFTS = (".part", ".partial", ".lock")


class _Same(NamedTuple):
    """A file as it was when it was equal to its object."""

    size: int
    mtime_ns: int
    tag: str


Wanted = Callable[[str], bool]  # of a name below the folder, such as eval/digits.json

_same: dict[Path, _Same] = {}
_homes: list[int] = []  # the locked file that says that this process lives
_mutex = threading.RLock()  # of pushes and pulls


def everything(name: str) -> bool:
    """Takes every file."""
    return bool(name)


def enter(folder: Path) -> None:
    """Makes the home of a folder, unless this process has it; removes those of dead processes."""
    root = places.cache() / places.WORK
    root.mkdir(parents=True, exist_ok=True)
    if not _homes:
        for note in root.glob("*.alive"):
            with contextlib.suppress(OSError), note.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(note.with_suffix(""), ignore_errors=True)
                note.unlink(missing_ok=True)
        draft = root / f"{places.process()}{_DRAFTS[0]}"
        mine = os.open(draft, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(mine, fcntl.LOCK_EX)  # before others see it
        draft.replace(draft.with_name(f"{places.process()}.alive"))
        _homes.append(mine)
    folder.mkdir(parents=True, exist_ok=True)


def pull(folder: Path, wanted: Wanted = everything) -> None:
    """Makes the wanted files of a folder those of the store: fetches what differs, removes all others."""
    url = places.url(folder)
    assert url is not None, folder
    with _mutex:
        enter(folder)
        found = {name: one for name, one in objects.below(url).items() if wanted(name)}
        for name, path in _files(folder):
            if wanted(name) and name not in found:
                path.unlink()
                _same.pop(path, None)
        differs = [name for name, one in found.items() if _tag(folder / name) != one.tag]
        for name in differs:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)

        def fetch(name: str) -> None:
            path = folder / name
            draft = path.with_name(path.name + _DRAFTS[0])
            objects.download(f"{url}/{name}", draft)
            draft.replace(path)
            _note(path, path.stat(), found[name].tag)

        objects.each(fetch, differs)


def push(folder: Path, wanted: Wanted = everything, *, last: Wanted = lambda name: False) -> None:
    """Uploads the wanted files that differ from the store's, and removes those that are gone here.

    Args:
      folder: that this process works on.
      wanted: of which names.
      last: which of them are markers.
    """
    url = places.url(folder)
    assert url is not None, folder
    with _mutex:
        names = {name: path for name, path in _files(folder) if wanted(name)}
        differs = [name for name, path in names.items() if _tag(path) is None]
        gone = [path for path in list(_same) if path.is_relative_to(folder) and not path.exists()]
        gone = [path for path in gone if wanted(path.relative_to(folder).as_posix())]
        markers = [name for name in differs if last(name)]
        objects.remove(f"{url}/{name}" for name in markers)
        objects.remove(str(places.url(path)) for path in gone)
        for path in gone:
            _same.pop(path)

        def send(name: str) -> None:
            path = folder / name
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile: the next push tells
                was = path.stat()
                _note(path, was, objects.upload(path, f"{url}/{name}").tag)

        objects.each(send, [name for name in differs if name not in markers])
        objects.each(send, markers)


@contextlib.contextmanager
def pushed(
    folder: Path, wanted: Wanted = everything, *, say: Callable[[str], None]
) -> Iterator[None]:
    """While this lasts, what changes in a folder is pushed every so many seconds, and at last.

    A push that fails is told and made up for by the next one; the last one raises OSError.
    """
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(seconds()):
            try:
                push(folder, wanted)
            except OSError as error:
                say(f"{error}\nIt goes on; what is missing is sent with the next push.")

    thread = threading.Thread(target=keep, name="push", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the other error counts
            push(folder, wanted)
        raise
    finally:
        ended.set()
        thread.join()
    push(folder, wanted)


@contextlib.contextmanager
def read(folder: Path, wanted: Wanted = everything) -> Iterator[None]:
    """While this lasts, the wanted files of a store's folder are here; any other folder is left alone."""
    if places.url(folder) is None:
        yield
        return
    try:
        pull(folder, wanted)
        yield
    finally:
        leave(folder)


@contextlib.contextmanager
def written(folder: Path, *, last: Wanted = lambda name: False) -> Iterator[None]:
    """Sends what the block puts into a folder, if it does not raise; any but a store's is left alone."""
    if places.url(folder) is None:
        yield
        return
    try:
        begin(folder)
        yield
        deliver(folder, last=last)
    finally:
        leave(folder)


def begin(folder: Path) -> None:
    """Makes the home of a folder to write into, and checks, before long work, that the store takes objects.

    Raises:
      PermissionError: if it does not.
    """
    url = places.url(folder)
    assert url is not None, folder
    enter(folder)
    probe = f"{url}/{places.process()}.probe"
    objects.write(probe, b"")
    objects.remove([probe])


def deliver(
    folder: Path, wanted: Wanted = everything, *, last: Wanted = lambda name: False
) -> None:
    """Sends what long work made, as `push`; what cannot be sent is kept on this machine.

    Raises:
      OSError: saying why, and where it is kept.
    """
    try:
        push(folder, wanted, last=last)
    except OSError as error:
        kept = places.cache() / "unsent" / places.process() / folder.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        folder.replace(kept)
        first = "; ".join(name for name, _ in _files(kept) if last(name))
        raise OSError(
            f"{error}\nWhat was made is kept in {kept}: copy it to {places.url(folder)}, and last {first}"
        ) from error


@contextlib.contextmanager
def opened(folder: Path, pulled: Wanted, sent: Wanted, *, dry: bool) -> Iterator[None]:
    """While this lasts, a folder of a store is here, and what changes in it is sent there.

    Any other folder is left alone.

    Args:
      folder: to work on.
      pulled: what is needed from the start.
      sent: what is sent as it changes.
      dry: send nothing.
    """
    if places.url(folder) is None:
        yield
        return
    try:
        pull(folder, pulled)
        if dry:
            yield
            return
        with pushed(folder, sent, say=lambda text: print(text, file=sys.stderr, flush=True)):
            yield
    finally:
        leave(folder)


def leave(folder: Path) -> None:
    """Removes the home of a folder from this machine."""
    shutil.rmtree(folder, ignore_errors=True)
    forget(folder)


def forget(place: Path) -> None:
    """Lets a file, or those below a folder, be removed here and stay in the store."""
    with _mutex:
        for path in [path for path in _same if path.is_relative_to(place)]:
            del _same[path]


def seconds() -> float:
    """Returns the time between two pushes."""
    given = os.environ.get(INTERVAL)
    try:
        value = _SECONDS if given is None else float(given)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ValueError(f"{INTERVAL}={given}: expected a number of seconds above 0, such as 30")
    return value


def _files(folder: Path) -> list[tuple[str, Path]]:
    """The files below a folder by name; drafts and locks are none of them."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [
        (path.relative_to(folder).as_posix(), path)
        for path in found
        if not path.name.endswith(_DRAFTS)
    ]


def _tag(path: Path) -> str | None:
    """Returns the tag of the object that a file is equal to; None if it was changed, or is no file."""
    same = _same.get(path)
    with contextlib.suppress(FileNotFoundError):
        now = path.stat()
        if same is not None and (same.size, same.mtime_ns) == (now.st_size, now.st_mtime_ns):
            return same.tag
    return None


def _note(path: Path, was: os.stat_result, tag: str) -> None:
    _same[path] = _Same(was.st_size, was.st_mtime_ns, tag)
