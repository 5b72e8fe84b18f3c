"""Files of the Hugging Face hub: fetched into its cache, named, and checked by the hash that it listed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from mvjax import messages

PREFIX = "hf://"

INDEX_SUFFIX = ".index.json"  # of a file that names those with the tensors
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+))?")
_FORM = "expected hf://OWNER/NAME[@REVISION]/FILE"


def check_hash(path: Path, digest: str) -> str:
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


def resolve(text: str, names: Sequence[str]) -> Path:
    """Returns the fetched file behind an hf:// location; arguments and errors as `files.resolve`."""
    repository, revision, file = parts(text)
    if not (file or names):
        raise ValueError(f"{text}: {_FORM}")
    candidates = [file] if file else list(names)
    reasons: list[str] = []
    for name in candidates:
        path = fetch(repository, name, revision, reasons)
        if path is not None:
            if name.endswith(INDEX_SUFFIX):
                _fetch_indexed(path, repository, name)
            return path
    at = f" --revision {revision}" if revision else ""
    raise FileNotFoundError(
        f"{text}: neither on the hub nor in its local cache:"
        + messages.lines(reasons)
        + "\nCheck repository, revision and file name. Without a network, run this where there is one"
        f" and copy the cache (HF_HOME): hf download {repository} {candidates[-1]}{at}"
    )


def parts(text: str) -> tuple[str, str | None, str | None]:
    """Returns repository, revision and file of an hf:// location."""
    parts = _HUB.fullmatch(text)
    if parts is None:
        raise ValueError(f"{text}: {_FORM}")
    return parts[1], parts[2], parts[3]


def known_absent(repository: str, name: str, revision: str | None) -> bool:
    """Whether the hub said, now or earlier, that a repository has no such file."""
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
    return cached is not None and not isinstance(cached, str)


def _fetch_indexed(index: Path, repository: str, name: str) -> None:
    """Fetches the files that an index names, of the same commit."""
    shards = indexed(index)
    depth = name.count("/")
    commit = index.parents[depth].name  # the cache keeps snapshots/COMMIT/NAME
    reasons: list[str] = []
    fetched = [fetch(repository, _beside(name, shard), commit, reasons) for shard in shards]
    if None in fetched:
        raise FileNotFoundError(
            f"{index} names files that are neither on the hub nor in its local cache:"
            + messages.lines(reasons)
        )


def indexed(index: Path) -> list[str]:
    """Returns the names of the files that an index names; ValueError if it is none."""
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{index}: expected JSON with "weight_map" ({error!r})') from error


def _beside(name: str, other: str) -> str:
    return f"{name[: name.rfind('/') + 1]}{other}"


def fetch(repository: str, name: str, revision: str | None, reasons: list[str]) -> Path | None:
    """Returns the cached or downloaded file, or None and adds a reason."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{PREFIX}{repository}: needs huggingface_hub: pip install 'mvjax[hub]', or download"
            " the files and give their path"
        ) from error
    missing = (errors.EntryNotFoundError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled)
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    except missing as error:
        reasons.append(f"{name}: {str(error).strip().splitlines()[0]}")
        return None
