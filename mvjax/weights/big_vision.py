"""big_vision's `.npz` files of a SigLIP image tower: read any of their layouts, write one.

A file holds arrays under "/"-joined paths (reference section 3.4). The image tower stands at the
root, under `params/` or under `opt/target/`, each with or without `img/`; its blocks are stacked or
one by one; bfloat16 comes back from numpy as 2-byte void. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import functools
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mvjax import files, messages
from mvjax import tree as tree_lib
from mvjax.config import schema
from mvjax.nn import siglip
from mvjax.weights import lazy, positions

ROOTS = ("params/", "opt/target/")  # what lies beside such a root is optimizer state
TOWER = "img/"
BLOCKS = "Transformer/encoderblock"
POSITIONS = "pos_embedding"
NOT_USED = (  # named parts of a file that the encoder has no use for
    r"(img/)?head/.*",  # PaliGemma's projection to the language model, or a classifier
    r"(img/)?MAPHead_0/.*",  # SigLIP's pooling head
    r"llm/.*",  # PaliGemma's language model
    r"txt/.*",  # SigLIP's text tower
    r"[tb]",  # SigLIP's temperature and bias
)

Shapes = dict[str, tuple[int, ...]]

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_VOID = np.dtype("V2")  # numpy forgets the name of bfloat16 in files


def load_siglip(path: str | Path, config: schema.SiglipConfig) -> dict:
    """Reads the image tower as the parameter tree of `nn.siglip.Siglip`, in numpy float32.

    Raises:
      ValueError: as `open_siglip`.
    """
    return tree_lib.unflatten({p: leaf[()] for p, leaf in open_siglip(path, config).items()})


def open_siglip(path: str | Path, config: schema.SiglipConfig) -> dict[str, lazy.LazyTensor]:
    """Returns {path: leaf} of the image tower, float32; one leaf at a time is in memory.

    The location of an npz file may name the sub-tree that is the tower, as `FILE.npz:img`. Positions of
    another image size are resampled.

    Raises:
      ValueError: naming the file, and every missing, unexpected or misshapen parameter.
    """
    file, subtree = split_location(str(path))
    file = files.resolve(file)
    expected = _shapes(config)
    with _open(file) as archive:
        keys = _tower_names(archive.files, subtree, file)
        one_by_one = any(name.startswith(f"{BLOCKS}_") for name in keys)
        headers = {name: _header(archive, key, file) for name, key in keys.items()}
    arrays = _Arrays(file)
    members: dict[str, lazy.LazyTensor] = {
        name: arrays.member((key,), headers[name][0]) for name, key in keys.items()
    }
    if POSITIONS in members:
        members[POSITIONS] = positions.fit(members[POSITIONS], config, place=str(file))
    wanted = _unstacked(expected) if one_by_one else expected
    problems = [f"{n}: missing, expected {list(s)}" for n, s in wanted.items() if n not in members]
    problems += [f"{name}: unexpected" for name in members if name not in wanted]
    for name in [name for name in wanted if name in members]:
        shape, dtype = members[name].shape, headers[name][1]
        if shape != wanted[name]:
            problems.append(f"{name}: expected {list(wanted[name])}, got {list(shape)}")
        if not lazy.is_float(dtype):
            problems.append(f"{name}: expected floating point numbers, got {dtype}")
    tree_lib.refuse(
        problems,
        f"{path}: must hold the SigLIP image tower that the config describes, but"
        f" {messages.counted(len(problems), 'parameter differs', 'parameters differ')}",
    )
    return _stacked(members, keys, arrays, config.layers) if one_by_one else members


def save_siglip(path: str | Path, tree: tree_lib.Tree) -> None:
    """Writes the image tower under `params/img/`, blocks stacked, dtypes as they are."""
    arrays = {f"{ROOTS[0]}{TOWER}{n}": np.asarray(a) for n, a in tree_lib.flatten(tree).items()}
    with Path(path).open("wb") as file:  # an open file, because savez would append to a bare name
        np.savez(file, allow_pickle=False, **arrays)


def split_location(path: str) -> tuple[str, str]:
    """Splits FILE.npz:SUB/TREE into the file's location and `SUB/TREE/`; without a sub-tree it is empty."""
    parts = re.fullmatch(r"(.+\.npz):([\w/]*\w)", path)
    return (parts[1], f"{parts[2]}/") if parts else (path, "")


@contextlib.contextmanager
def _open(file: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Opens an npz file; whatever a broken one raises, also later, names the file."""
    try:
        with file.open("rb") as stream, np.lib.npyio.NpzFile(stream, allow_pickle=False) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        size = file.stat().st_size
        raise ValueError(
            f"{file}: must be a whole npz file, but its {size} bytes are truncated, corrupt or"
            f" something else ({error}); copy or download it again"
        ) from error


def _tower_names(keys: Iterable[str], subtree: str, file: Path) -> dict[str, str]:
    """Returns {name below the tower: key in the file}, less what is not used by name."""
    names = {key: key for key in keys}
    for root in ROOTS:
        if inside := _below(names, root):
            names = inside
            break
    if subtree:
        names = _below(names, subtree)
        if not names:
            raise ValueError(f"{file}: must hold the sub-tree {subtree!r}, but no key begins so")
    names = {n: key for n, key in names.items() if not any(re.fullmatch(r, n) for r in NOT_USED)}
    return {n.removeprefix(TOWER): key for n, key in names.items()}


def _below(names: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {n.removeprefix(prefix): key for n, key in names.items() if n.startswith(prefix)}


def _shapes(config: schema.SiglipConfig) -> Shapes:
    """Returns {path: shape} of the encoder's parameters."""
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    tree = jax.eval_shape(siglip.Siglip(config).init, jax.random.key(0), pixels)["params"]
    return {path: leaf.shape for path, leaf in tree_lib.flatten(tree).items()}


def _unstacked(shapes: Shapes) -> Shapes:
    """Names every block: Transformer/encoderblock/x [L, ...] -> Transformer/encoderblock_{i}/x."""
    each: Shapes = {}
    for name, shape in shapes.items():
        if name.startswith(f"{BLOCKS}/"):
            rest = name.removeprefix(BLOCKS)
            each |= {f"{BLOCKS}_{i}{rest}": shape[1:] for i in range(shape[0])}
        else:
            each[name] = shape
    return each


def _stacked(
    members: Mapping[str, lazy.LazyTensor], keys: Mapping[str, str], arrays: _Arrays, layers: int
) -> dict[str, lazy.LazyTensor]:
    """Inverse of `_unstacked`, on members."""
    first = f"{BLOCKS}_0/"
    stacked = {n: member for n, member in members.items() if not n.startswith(f"{BLOCKS}_")}
    for rest, member in _below(members, first).items():
        each = tuple(keys[f"{BLOCKS}_{i}/{rest}"] for i in range(layers))
        stacked[f"{BLOCKS}/{rest}"] = arrays.member(each, (layers, *member.shape))
    return stacked


class _Arrays:
    """The arrays of a file, the last one read being kept for the other devices that need parts of it."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._last: tuple[tuple[str, ...], np.ndarray] | None = None

    def member(self, keys: tuple[str, ...], shape: tuple[int, ...]) -> lazy.Computed:
        """Returns one array, or several as one of the given shape, in float32, whatever the file has."""
        read = functools.partial(self._read, keys, shape)
        return lazy.Computed(shape, np.dtype(np.float32), read)

    def _read(self, keys: tuple[str, ...], shape: tuple[int, ...], part: lazy.Index) -> np.ndarray:
        """Reads the arrays whole, so that zip's checksums are compared, and returns the part."""
        if self._last is None or self._last[0] != keys:
            self._last = None  # before the next one takes memory
            whole = np.empty(shape, np.float32)
            with _open(self._file) as archive:
                for one, key in zip(whole.reshape(len(keys), -1), keys, strict=True):
                    one[:] = _values(archive, key).reshape(-1)
                    if not np.isfinite(one).all():
                        raise ValueError(
                            f"{self._file}: {key}: holds NaN or infinite values; fetch it again"
                        )
            self._last = (keys, whole)
        return self._last[1][(*part, ...)]


def _header(
    archive: np.lib.npyio.NpzFile, key: str, file: Path
) -> tuple[tuple[int, ...], np.dtype]:
    """Returns shape and dtype of an array without reading it."""
    try:
        assert archive.zip is not None  # as long as it is open
        with archive.zip.open(key if key in archive.zip.namelist() else f"{key}.npy") as member:
            shape, _, dtype = _HEADERS[np.lib.format.read_magic(member)](member)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file}: {key}: must be a plain array ({error})") from error
    if dtype.hasobject:
        raise ValueError(
            f"{file}: {key}: must be a plain array, got a pickle, which is never opened"
        )
    return shape, np.dtype(ml_dtypes.bfloat16) if dtype == _VOID else dtype


def _values(archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    array = archive[key]
    return array.view(ml_dtypes.bfloat16) if array.dtype == _VOID else array
