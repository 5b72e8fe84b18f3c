"""Where a location on an object store lies on this machine while it is read or written, and back.

    CACHE/staged/s3/BUCKET/KEY      verified copies, shared by the processes of a host (`staging`)
    CACHE/work/PROCESS/s3/BUCKET/KEY   folders that this process writes into (`work`)

CACHE is MVJAX_CACHE, else stores/ below XDG_CACHE_HOME/mvjax or ~/.cache/mvjax.
"""

from __future__ import annotations

import functools
import os
import re
import socket
import uuid
from pathlib import Path

SCHEMES = ("gs", "s3")
CACHE = "MVJAX_CACHE"
STAGED, WORK = "staged", "work"

_URL = re.compile(rf"({'|'.join(SCHEMES)})://([\w.-]+)((?:/[^/]+)*)/*", re.ASCII | re.DOTALL)


def is_url(location: str | Path) -> bool:
    """Whether a location names an object store."""
    return str(location).startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def parts(url: str) -> tuple[str, str, str]:
    """Returns scheme, bucket and key ("" for the bucket itself).

    Raises:
      ValueError: if the location has no bucket, or steps that are no names: //, . or ..
    """
    match = _URL.fullmatch(url)
    key = match[3].lstrip("/") if match else ""
    if match is None or {".", ".."} & set(key.split("/")):
        raise ValueError(
            f"{url}: expected gs://BUCKET/NAME or s3://BUCKET/NAME, without //, . or .."
        )
    return match[1], match[2], key


def cache() -> Path:
    """Returns the folder of all copies; it need not exist."""
    if given := os.environ.get(CACHE):
        return Path(given).expanduser().absolute()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home.absolute() / "mvjax" / "stores"


def staged(url: str) -> Path:
    """Returns where the copy of an object, or the folder of such copies, lies."""
    scheme, bucket, key = parts(url)
    return cache() / STAGED / scheme / bucket / key


def work(url: str) -> Path:
    """Returns the folder in which this process works on a folder of a store."""
    scheme, bucket, key = parts(url)
    return cache() / WORK / process() / scheme / bucket / key


@functools.cache
def process() -> str:
    """Returns a name that no other process has, on any host that may share the cache."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def url(path: Path) -> str | None:
    """Returns the location on a store that a path stands for; None for any other path."""
    root = cache()
    if not path.is_absolute() or not path.is_relative_to(root):
        return None
    steps = path.relative_to(root).parts
    steps = {STAGED: steps[1:], WORK: steps[2:]}.get(steps[0] if steps else "", ())
    if len(steps) < 2 or steps[0] not in SCHEMES:
        return None
    return f"{steps[0]}://{'/'.join(steps[1:])}"


def in_work(path: Path) -> bool:
    """Whether a path is in a folder that a process writes into."""
    return path.is_relative_to(cache() / WORK)


def named(text: object) -> str:
    """Returns a text with the locations on stores in place of the paths that stand for them."""
    said = str(text)
    if (root := str(cache())) not in said:
        return said
    below = rf"{re.escape(root)}/(?:{STAGED}|{WORK}/[^/\s]+)/({'|'.join(SCHEMES)})/"
    return re.sub(below, r"\1://", said)
