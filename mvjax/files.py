"""Files: locations, hashes, and atomic writes.

A location is a path, a folder, `package:NAME/FILE`, or `hf://OWNER/NAME@REVISION/FILE`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mvjax import messages

PACKAGE_PREFIX = "package:"
HUB_PREFIX = "hf://"
# file names to look for in a folder or repository, in this order
WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "consolidated.safetensors",  # moshi-finetune's name
)

DRAFT = ".part"  # suffix of a file until its content is complete

_INDEX_SUFFIX = ".index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+))?")
_HUB_FORM = "expected hf://OWNER/NAME[@REVISION]/FILE"
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
        return _on_hub(text, names)
    path = _in_package(text) if text.startswith(PACKAGE_PREFIX) else local(text)
    if path.is_dir():
        return _in_folder(path, text, names)
    if not path.is_file():
        fact = _neighbors(path.parent)
        raise FileNotFoundError(f"{text}: no such file; {fact}. Check the path in `frozen`.")
    return path


def local(path: str | Path) -> Path:
    """Returns the path with `~` expanded; ValueError for gs://, s3:// and the like: none becomes a folder."""
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
        repository, revision, file = _hub_parts(location)
        folder = file.rpartition("/")[0] if file else ""
        at = f"@{revision}" if revision else ""
        return f"{HUB_PREFIX}{repository}{at}/{folder + '/' if folder else ''}{name}"
    if location.startswith(PACKAGE_PREFIX):
        return f"{location.rpartition('/')[0]}/{name}"
    path = local(location)
    return str((path if is_folder(location) else path.parent) / name)


def is_folder(location: str) -> bool:
    """Whether a location is an existing folder, or a repository without a file."""
    if location.startswith(HUB_PREFIX):
        return _hub_parts(location)[2] is None
    return not location.startswith(PACKAGE_PREFIX) and local(location).is_dir()


def may_exist(location: str) -> bool:
    """Whether there is a file or folder at a location, as far as can be told without a network."""
    here = not location.startswith((HUB_PREFIX, PACKAGE_PREFIX))
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
    repository, revision, file = _hub_parts(location)
    assert file is not None, location
    reasons: list[str] = []
    path = _fetch(repository, file, revision, reasons)
    if path is None and not _known_absent(repository, file, revision):
        raise FileNotFoundError(
            f"{location}: whether it exists is unknown: {reasons[0].rstrip('.')}. Run this where there"
            " is a network and copy the cache (HF_HOME), or give a local folder."
        )
    return path


def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_hub_hash(path: Path, digest: str) -> str:
    """Returns the SHA-256 of a file; for one in the hub's cache it must be the one that the hub listed.

    Raises:
      ValueError: naming the file and both hashes.
    """
    blob = path.resolve()  # the hub's cache names large files by their SHA-256
    listed = blob.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", blob.name)
    if listed and blob.name != digest:
        raise ValueError(
            f"{path}: expected SHA-256 {blob.name}, as the hub listed it, got {digest};"
            " the file is damaged: delete it and fetch it again"
        )
    return digest


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


def _on_hub(text: str, names: Sequence[str]) -> Path:
    repository, revision, file = _hub_parts(text)
    if not (file or names):
        raise ValueError(f"{text}: {_HUB_FORM}")
    candidates = [file] if file else list(names)
    reasons: list[str] = []
    for name in candidates:
        path = _fetch(repository, name, revision, reasons)
        if path is not None:
            if name.endswith(_INDEX_SUFFIX):
                _fetch_indexed(path, repository, name)
            return path
    at = f" --revision {revision}" if revision else ""
    raise FileNotFoundError(
        f"{text}: neither on the hub nor in its local cache:"
        + messages.lines(reasons)
        + "\nCheck repository, revision and file name. Without a network, run this where there is one"
        f" and copy the cache (HF_HOME): hf download {repository} {candidates[-1]}{at}"
    )


def _hub_parts(text: str) -> tuple[str, str | None, str | None]:
    """Returns repository, revision and file of an hf:// location."""
    parts = _HUB.fullmatch(text)
    if parts is None:
        raise ValueError(f"{text}: {_HUB_FORM}")
    return parts[1], parts[2], parts[3]


def _known_absent(repository: str, name: str, revision: str | None) -> bool:
    """Whether the hub said, now or earlier, that a repository has no such file."""
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
    return cached is not None and not isinstance(cached, str)


def _fetch_indexed(index: Path, repository: str, name: str) -> None:
    """Fetches the files that an index names, of the same commit."""
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{index}: expected JSON with "weight_map" ({error!r})') from error
    depth = name.count("/")
    commit = index.parents[depth].name  # the cache keeps snapshots/COMMIT/NAME
    reasons: list[str] = []
    fetched = [_fetch(repository, _beside(name, shard), commit, reasons) for shard in shards]
    if None in fetched:
        raise FileNotFoundError(
            f"{index} names files that are neither on the hub nor in its local cache:"
            + messages.lines(reasons)
        )


def _beside(name: str, other: str) -> str:
    return f"{name[: name.rfind('/') + 1]}{other}"


def _fetch(repository: str, name: str, revision: str | None, reasons: list[str]) -> Path | None:
    """Returns the cached or downloaded file, or None and adds a reason."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{HUB_PREFIX}{repository}: needs huggingface_hub: pip install 'mvjax[hub]', or download"
            " the files and give their path"
        ) from error
    missing = (errors.EntryNotFoundError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled)
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    except missing as error:
        reasons.append(f"{name}: {str(error).strip().splitlines()[0]}")
        return None
