"""The lock of a run folder: one run at a time trains into it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from mvjax import run_folder

_TAKEN = (errno.EACCES, errno.EAGAIN)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Locks a run folder, which is made; a folder into which nothing else came is removed again.

    The system releases the lock when the process ends, however it ends, and no child inherits it. It works
    across hosts where the file system does (NFS, Lustre, GPFS); one without locks locks nothing.

    Raises:
      ValueError: naming the process that trains into the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / run_folder.LOCK
    file = _lock(path)
    try:
        holder = f"process {os.getpid()} on {socket.gethostname()}, since {time.ctime()}\n".encode()
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
            os.ftruncate(file, 0)
            os.pwrite(file, holder, 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()


def _lock(path: Path) -> int:
    """Returns the locked file, which is open."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
                os.close(file)
                raise ValueError(
                    f"{path.parent}: another run trains into this folder ({holder}); stop it or wait for its"
                    " end, or choose another --out"
                ) from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)  # its last holder has just removed it
