"""Files: locations, hashes, and atomic writes.

A location is a path, a folder, `package:NAME/FILE`, `hf://OWNER/NAME@REVISION/FILE`, or an object or folder
of a store: `gs://BUCKET/NAME`, `s3://BUCKET/NAME`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mvjax import hub, messages
from mvjax.stores import objects, places, staging

PACKAGE_PREFIX = "package:"
HUB_PREFIX = hub.PREFIX
# file names to look for in a folder or repository, in this order
WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "consolidated.safetensors",  # moshi-finetune's name
)

DRAFT = ".part"  # suffix of a file until its content is complete

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:/")  # of more than one letter: C:/ is a path


def resolve(location: str | Path, *, names: Sequence[str] = ()) -> Path:
    """Returns the existing file behind a location.

    Args:
      location: a path (`~` is expanded); `package:mvjax.digits/assets/moshi.safetensors`; or
        `hf://kyutai/moshika-pytorch-bf16@main/model.safetensors`, fetched into the hub's cache, the
        revision being optional. An index is fetched with the files that it names.
      names: what to look for in a folder, or in a repository without a file; the first one there counts.

    Raises:
      ValueError: if the location has no package, repository or file part, names a folder without one
        of `names`, or a pickle.
      FileNotFoundError: naming the location, where it was looked for, and what lies there instead.
      ModuleNotFoundError: if a location on the hub is asked for and huggingface_hub is not installed.
    """
    text = str(location)
    if not text:
        raise ValueError(
            "expected a location, got an empty one: a file left to be found beside frozen.moshi, where"
            " nothing is. Check frozen.moshi."
        )
    if text.endswith(_PICKLES):
        raise ValueError(
            f"{text}: expected safetensors or npz, got a pickle, which can run code and is never"
            " opened; convert it with its own framework (safetensors.torch.save_file)"
        )
    if text.startswith(HUB_PREFIX):
        return hub.resolve(text, names)
    if places.is_url(text):
        return _on_store(text, names)
    path = _in_package(text) if text.startswith(PACKAGE_PREFIX) else local(text)
    if path.is_dir():
        return _in_folder(path, text, names)
    if not path.is_file():
        fact = _neighbors(path.parent)
        raise FileNotFoundError(f"{text}: no such file; {fact}. Check the path in `frozen`.")
    return path


def local(path: str | Path) -> Path:
    """Returns the path with `~` expanded; of gs:// and s3:// where copies lie, which `staging.here` fetches.

    Raises:
      ValueError: for hdfs://, https:// and the like: none becomes a folder.
    """
    if places.is_url(path):
        return places.staged(str(path))
    return on_disk(path)


def output(path: str | Path) -> Path:
    """Returns the path of a folder to write; of gs:// and s3:// where this process works on it."""
    return places.work(str(path)) if places.is_url(path) else local(path)


def on_disk(path: str | Path) -> Path:
    """Returns the path with `~` expanded; ValueError for a location of any other kind."""
    if scheme := _SCHEME.match(str(path)):
        raise ValueError(
            f"{path}: expected a path on this machine, got a location of {scheme[0]}/, which is neither read"
            " nor written here; mount it as a folder (gcsfuse, mountpoint-s3) or copy the files"
        )
    return Path(path).expanduser()


def beside(location: str, name: str) -> str:
    """Returns the location of a file in the same folder or repository as a location, or in it.

    Args:
      location: as of `resolve`; a folder or a repository, or a file.
      name: of the other file; an `hf://` location stands for itself.
    """
    if name.startswith(HUB_PREFIX):
        return name
    if location.startswith(HUB_PREFIX):
        repository, revision, file = hub.parts(location)
        folder = file.rpartition("/")[0] if file else ""
        at = f"@{revision}" if revision else ""
        return f"{HUB_PREFIX}{repository}{at}/{folder + '/' if folder else ''}{name}"
    if location.startswith(PACKAGE_PREFIX):
        return f"{location.rpartition('/')[0]}/{name}"
    if places.is_url(location):
        at = location.rstrip("/")
        return f"{at if is_folder(at) else at.rpartition('/')[0]}/{name}"
    path = local(location)
    return str((path if is_folder(location) else path.parent) / name)


def is_folder(location: str) -> bool:
    """Whether a location is an existing folder, a repository without a file, or no object of a store."""
    if location.startswith(HUB_PREFIX):
        return hub.parts(location)[2] is None
    if places.is_url(location):
        return objects.stat(location) is None
    return not location.startswith(PACKAGE_PREFIX) and local(location).is_dir()


def may_exist(location: str) -> bool:
    """Whether there is a file or folder at a location, as far as can be told without a network."""
    here = not (location.startswith((HUB_PREFIX, PACKAGE_PREFIX)) or places.is_url(location))
    return not here or local(location).exists()


def find(location: str) -> Path | None:
    """Returns the existing file behind a location, or None where there is certainly none.

    Raises:
      FileNotFoundError: if the hub cannot be asked, and its cache does not say that there is none.
    """
    if not location.startswith(HUB_PREFIX):
        try:
            return resolve(location)
        except FileNotFoundError:
            return None
    repository, revision, file = hub.parts(location)
    assert file is not None, location
    reasons: list[str] = []
    path = hub.fetch(repository, file, revision, reasons)
    if path is None and not hub.known_absent(repository, file, revision):
        raise FileNotFoundError(
            f"{location}: whether it exists is unknown: {reasons[0].rstrip('.')}. Run this where there"
            " is a network and copy the cache (HF_HOME), or give a local folder."
        )
    return path


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def joint_hash(digests: Iterable[str]) -> str:
    """Returns the SHA-256 over the hexadecimal hashes of one or several files."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def write_atomic(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Replaces a small file atomically; its folder must exist.

    Args:
      path: to write.
      content: all of it.
      shared: several processes may write it at once, each the same content.
    """
    own = f".{os.getpid()}" if shared else ""
    draft = path.with_name(f"{path.name}{own}{DRAFT}")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


@contextlib.contextmanager
def replacing(path: Path, size: int) -> Iterator[Path]:
    """Gives the path of a draft, which replaces a file when it is complete, or else is removed.

    Raises:
      OSError: naming the file and its size in bytes, when the disk is full or the folder cannot be written.
    """
    draft = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.replace(path)
    except OSError as error:
        raise OSError(
            f"{path}: could not write {size:,} bytes: {error}; check free space and permissions"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _in_folder(folder: Path, text: str, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    one_of = f" or a folder with one of {list(names)}" if names else ""
    raise ValueError(
        f"{text}: expected a file{one_of}, got the folder; {_neighbors(folder)}. Name a file in it."
    )


def _neighbors(folder: Path) -> str:
    if not folder.is_dir():
        return f"the folder {folder} does not exist"
    return (
        f"{folder} holds {messages.names(sorted(path.name for path in folder.iterdir()), shown=8)}"
    )


def _in_package(text: str) -> Path:
    package, _, name = text.removeprefix(PACKAGE_PREFIX).partition("/")
    if not package or not name:
        raise ValueError(
            f"{text}: expected package:NAME/FILE, such as package:mvjax.digits/assets/x"
        )
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise FileNotFoundError(f"{text}: no package {package!r} is installed; check the name")
    return Path(str(importlib.resources.files(package))) / name


def _on_store(text: str, names: Sequence[str]) -> Path:
    """Returns the copy of an object, fetched with the files that it names if it is an index."""
    url = text.rstrip("/")
    for location in (url, *(f"{url}/{name}" for name in names)):
        path = staging.here(local(location))
        if path.is_file():
            if path.name.endswith(hub.INDEX_SUFFIX):
                beside = [path.with_name(name) for name in hub.indexed(path)]
                objects.each(staging.here, beside)
            return path
    one_of = f", nor a folder with one of {list(names)}" if names else ""
    raise FileNotFoundError(f"{text}: no such object{one_of}; check the name in `frozen`.")
