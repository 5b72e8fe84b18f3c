"""Objects of Google Cloud Storage and S3, by fsspec: each request is tried again, with growing waits."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterable
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mvjax import messages
from mvjax.stores import places

WAITS = (
    0.5,
    1.0,
    2.0,
    4.0,
    8.0,
    16.0,
    30.0,
)  # seconds before another try, each by up to a fifth longer
GIVE_UP = 120.0  # seconds after which there is no other try: the clients have waits of their own
PARALLEL = 8  # requests at once

_MODULES = {"gs": "gcsfs", "s3": "s3fs"}
_LOGIN = {
    "gs": "log in (gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS)",
    "s3": "log in (aws configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)",
}
_DENIED = (401, 403)
_LOST = (404,)
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Object(NamedTuple):
    """What a store says about an object."""

    size: int
    tag: str  # another one whenever the content is another one


def below(url: str) -> dict[str, Object]:
    """Returns {name: object} of all objects below a folder, by the names that follow URL/."""
    path = _path(url)

    def found(fs: Any) -> dict[str, Any]:
        return fs.find(path, detail=True)

    listed = _tried(url, "list", found)
    prefix = f"{path}/"
    return {
        name.removeprefix(prefix): _object(info)
        for name, info in listed.items()
        if name.startswith(prefix) and not name.endswith("/")  # some tools make objects for folders
    }


def stat(url: str) -> Object | None:
    """Returns an object; None if there is none of that name."""

    def found(fs: Any) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError):
            info = fs.info(_path(url))
            return info if info["type"] == "file" else None
        return None

    info = _tried(url, "read", found)
    return None if info is None else _object(info)


def read(url: str) -> bytes:
    """Returns the content of an object; FileNotFoundError if there is none."""
    return _tried(url, "read", lambda fs: fs.cat_file(_path(url)))


def read_range(url: str, start: int, end: int) -> bytes:
    """Returns bytes start to end - 1 of an object."""
    return _tried(url, "read", lambda fs: fs.cat_file(_path(url), start=start, end=end))


def download(url: str, path: Path) -> None:
    """Writes the content of an object into a file."""
    _tried(url, "read", lambda fs: fs.get_file(_path(url), str(path)))


def write(url: str, content: bytes) -> Object:
    """Replaces an object; readers see the old one or the new one, whole."""
    _tried(url, "write", lambda fs: fs.pipe_file(_path(url), content))
    return _written(url)


def upload(path: Path, url: str) -> Object:
    """Replaces an object with the content of a file."""
    _tried(url, "write", lambda fs: fs.put_file(str(path), _path(url)))
    return _written(url)


def remove(urls: Iterable[str]) -> None:
    """Removes objects; those that are not there count as removed."""

    def without(url: str) -> None:
        def removed(fs: Any) -> None:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(_path(url))

        _tried(url, "remove", removed)

    each(without, list(urls))


def end_uploads(url: str) -> int:
    """Ends uploads in parts below a folder, left by killed processes, which S3 keeps; returns how many."""
    scheme, bucket, key = places.parts(url)
    if scheme != "s3":  # GCS forgets them after a week, and shows none
        return 0

    def ended(fs: Any) -> int:
        asked = {"Bucket": bucket, "Prefix": f"{key}/" if key else ""}
        left = fs.call_s3("list_multipart_uploads", **asked).get("Uploads", [])
        for one in left:
            fs.call_s3(
                "abort_multipart_upload", Bucket=bucket, Key=one["Key"], UploadId=one["UploadId"]
            )
        return len(left)

    with contextlib.suppress(PermissionError):  # a right of its own, which a run can do without
        return _tried(url, "list", ended)
    return 0


def each(do: Callable[[Any], _T], items: list) -> list[_T]:
    """Does something for each item, several at a time; raises the first error, after all have ended."""
    if len(items) < 2:
        return [do(item) for item in items]
    with futures.ThreadPoolExecutor(PARALLEL, thread_name_prefix="store") as pool:
        return list(pool.map(do, items))


def _written(url: str) -> Object:
    found = stat(url)
    if found is None:
        raise OSError(f"{url}: was written, and is gone; does another process remove it?")
    return found


def _path(url: str) -> str:
    _, bucket, key = places.parts(url)
    return f"{bucket}/{key}" if key else bucket


def _object(info: dict[str, Any]) -> Object:
    return Object(int(info["size"]), str(info.get("generation") or info["ETag"]))


@functools.cache
def _file_system(scheme: str) -> Any:
    """Returns fsspec's file system, without a cache of listings: other processes write, too."""
    module = _MODULES[scheme]
    # gcsfs would ask for each bucket's kind, with a client of its own
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{scheme}://: needs {error.name}: pip install 'mvjax[{scheme_extra(scheme)}]', or mount the"
            " bucket as a folder (gcsfuse, mountpoint-s3)"
        ) from error
    import fsspec

    logging.getLogger(module).setLevel(
        logging.CRITICAL
    )  # each try's traceback; errors are told by us
    return fsspec.filesystem(scheme, use_listings_cache=False)


def scheme_extra(scheme: str) -> str:
    """Returns the extra of mvjax that brings a store's client."""
    return {"gs": "gcs", "s3": "s3"}[scheme]


def _tried(url: str, verb: str, do: Callable[[Any], _T]) -> _T:
    """Returns what `do` does with the file system, after as many tries as `WAITS` and `GIVE_UP` allow.

    Raises:
      FileNotFoundError: if bucket or object are not there.
      PermissionError: if the store refuses.
      OSError: if the store cannot be reached, or fails again and again.
    """
    fs = _file_system(places.parts(url)[0])
    began = time.monotonic()
    for tries, wait in enumerate((*WAITS, None), start=1):
        try:
            return do(fs)
        except Exception as error:  # of aiohttp, botocore, google.auth, gcsfs
            _refuse(url, verb, error)
            took = time.monotonic() - began
            if wait is None or took > GIVE_UP:
                raise OSError(
                    f"{url}: could not {verb} it in {messages.counted(tries, 'try', 'tries')} and"
                    f" {took:.0f} s: {_said(error)}; check the network and the store's status, then run the"
                    " same command again"
                ) from error
            _log.info("%s: %s; tried again in %.1f s", url, _said(error), wait)
            time.sleep(wait * random.uniform(1.0, 1.2))
    raise AssertionError


def _refuse(url: str, verb: str, error: Exception) -> None:
    """Raises what another try cannot mend."""
    scheme, bucket, _ = places.parts(url)
    code = _status(error)
    if isinstance(error, (FileNotFoundError, IsADirectoryError)) or code in _LOST:
        raise FileNotFoundError(
            f"{url}: no such object, or no bucket {bucket}; check the name"
        ) from error
    kind = type(error).__name__
    no_login = "Credentials" in kind or "TokenError" in kind or kind == "RefreshError"
    if isinstance(error, PermissionError) or code in _DENIED or no_login:
        raise PermissionError(
            f"{url}: expected the right to {verb} it, the store refuses: {_said(error)}; {_LOGIN[scheme]},"
            f" or ask the owner of {bucket} for the right"
        ) from error
    if (
        isinstance(error, (ValueError, TypeError))
        and not isinstance(error, OSError)
        and code is None
    ):
        raise ValueError(f"{url}: {verb}: {_said(error)}") from error


def _status(error: BaseException | None) -> int | None:
    """Returns the HTTP status that an error, or its cause, tells of."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for name in ("code", "status"):
            value = getattr(error, name, None)
            if str(value).isdecimal() and 400 <= int(str(value)) < 600:
                return int(str(value))
        error = error.__cause__
    return None


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
