"""Lock files: one process at a time holds one; the system releases it when that ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

_TAKEN = (errno.EACCES, errno.EAGAIN)


class Taken(Exception):
    """Another process holds the lock; the text says which, and since when."""


@contextlib.contextmanager
def held(path: Path, *, wait: bool = False, shared: bool = False) -> Iterator[int]:
    """Locks a file, which is made, and removed afterwards; yields its file descriptor.

    It works across hosts where the file system does (NFS, Lustre, GPFS); one without locks locks nothing.

    Args:
      path: in a folder that exists.
      wait: until it is released.
      shared: a child process that is given the descriptor (`pass_fds`) holds the lock, too, until it ends;
        otherwise none does.

    Raises:
      Taken: unless it waits.
    """
    file = _take(path, wait=wait, shared=shared)
    try:
        holder = f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}\n".encode()
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
            os.ftruncate(file, 0)
            os.pwrite(file, holder, 0)
        yield file
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def holder(path: Path) -> str | None:
    """Returns who holds a lock that is not shared, or None if nobody does."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return _name(file) if error.errno in _TAKEN else None
    finally:
        os.close(file)
    return None


def _take(path: Path, *, wait: bool, shared: bool) -> int:
    """Returns the locked file, which is open."""
    lock = fcntl.flock if shared else fcntl.lockf
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in _TAKEN:
                name = _name(file)
                os.close(file)
                raise Taken(name) from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)  # its last holder has just removed it


def _name(file: int) -> str:
    return os.read(file, 200).decode(errors="replace").strip() or "another process"
