"""A lock on a store: an object that its holder renews, and that counts no longer once nobody does."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mvjax import locks
from mvjax.stores import objects, places

RENEWAL = 10.0  # seconds
PATIENCE = 4 * RENEWAL  # without a renewal the holder is gone
_SETTLE = 0.5  # seconds in which another process that takes it, too, shows


@contextlib.contextmanager
def held(url: str, *, lost: Callable[[str], None]) -> Iterator[None]:
    """Holds the lease that an object stands for; one that its holder left is taken after `PATIENCE`.

    One left by a dead process of this machine is taken at once.

    Args:
      url: of the object, which is removed afterwards.
      lost: called in another thread with the holder, if another process took it meanwhile, as it may where
        the store was out of reach for `PATIENCE`.

    Raises:
      locks.Taken: while another process renews it.
    """
    _take(url)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEWAL):
            with contextlib.suppress(OSError):  # the store is out of reach
                if (other := _holder(url)) is not None and other["id"] != places.process():
                    lost(_name(other))
                    return
                objects.write(url, _mine())

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            if (_holder(url) or {"id": ""})["id"] == places.process():
                objects.remove([url])


def ends(what: Path) -> Callable[[str], None]:
    """Returns what to do when the lease of a folder or file is lost: this process ends, and says so."""

    def end(holder: str) -> None:
        told = (
            f"{places.named(what)}: {holder} took it over, while the store was out of reach; ends"
        )
        print(told, file=sys.stderr, flush=True)
        os._exit(1)  # what it would write now would mix two runs

    return end


def holder(url: str) -> str | None:
    """Returns who renews a lease; None if nobody does, as far as that shows at once."""
    said = _holder(url)
    return None if said is None or _dead(said) else _name(said)


def _take(url: str) -> None:
    began, first = time.monotonic(), _holder(url)
    while (other := _holder(url)) is not None and not _dead(other):
        if other != first:
            raise locks.Taken(_name(other))
        if time.monotonic() - began > PATIENCE:
            break
        time.sleep(RENEWAL / 10)
    objects.write(url, _mine())
    time.sleep(_SETTLE)
    other = _holder(url)
    if other is None or other["id"] != places.process():
        raise locks.Taken(_name(other) if other else "another process")


def _mine() -> bytes:
    machine, names = _machine()
    said = {
        "id": places.process(),
        "holder": f"process {os.getpid()} on {socket.gethostname()}",
        "pid": os.getpid(),
        "machine": machine,
        "pids_of": names,
        "renewed": time.time(),
    }
    return json.dumps(said).encode()


def _holder(url: str) -> dict[str, Any] | None:
    """Returns what the object says; None without one. What is no lease is held by nobody."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        said = json.loads(objects.read(url))
        if isinstance(said, dict) and isinstance(said.get("id"), str):
            return said
    return None


def _name(said: dict[str, Any]) -> str:
    return str(said.get("holder", "another process"))


def _dead(said: dict[str, Any]) -> bool:
    """Whether the holder was a process whose number means the same here, and is gone."""
    here = _machine()
    if not here[0] or (said.get("machine"), said.get("pids_of")) != here:
        return False
    try:
        os.kill(int(said["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        pass
    return False


def _machine() -> tuple[str, str]:
    """Returns which boot of which machine this is, and whose process numbers hold; "" where it is unknown."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, os.readlink("/proc/self/ns/pid")
    return "", ""
