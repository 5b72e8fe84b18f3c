"""big_vision's `.npz` files of a SigLIP image tower: read any of their layouts, write one.

A file holds arrays under "/"-joined paths (reference section 3.4). The image tower stands at the
root, under `params/` or under `opt/target/`, each with or without `img/`; its blocks are stacked or
one by one; bfloat16 comes back from numpy as 2-byte void. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mvjax import config as config_lib
from mvjax import tree as tree_lib
from mvjax.nn import siglip
from mvjax.weights import locate

ROOTS = ("params/", "opt/target/")  # what lies beside such a root is optimiser state
TOWER = "img/"
BLOCKS = "Transformer/encoderblock"
NOT_USED = (  # named parts of a file that the encoder has no use for
    r"(img/)?head/.*",  # PaliGemma's projection to the language model, or a classifier
    r"(img/)?MAPHead_0/.*",  # SigLIP's pooling head
    r"llm/.*",  # PaliGemma's language model
    r"txt/.*",  # SigLIP's text tower
    r"[tb]",  # SigLIP's temperature and bias
)

Shapes = dict[str, tuple[int, ...]]


def load_siglip(path: str | Path, config: config_lib.SiglipConfig) -> dict:
    """Reads the image tower as the parameter tree of `nn.siglip.Siglip`, in numpy float32.

    Args:
      path: npz file or `package:NAME/FILE`; `FILE.npz:img` names the sub-tree that is the tower.
      config: the sizes that the file must have.

    Raises:
      ValueError: naming the file, and every missing, unexpected or misshapen parameter.
    """
    file, subtree = _split(str(path))
    expected = _shapes(config)
    with _open(file) as archive:
        names = _tower_names(archive.files, subtree, file)
        one_by_one = any(name.startswith(f"{BLOCKS}_") for name in names)
        stored = _unstacked(expected) if one_by_one else expected
        arrays = {n: _read(archive, key, file) for n, key in names.items() if n in stored}
    problems = [f"{name}: missing" for name in stored if name not in names]
    problems += [f"{name}: unexpected" for name in names if name not in stored]
    problems += [
        _misfit(name, stored[name], array, config)
        for name, array in arrays.items()
        if array.dtype != np.float32 or array.shape != stored[name]
    ]
    if problems:
        raise ValueError(
            f"{path}: must hold the SigLIP image tower that the config describes, but"
            f" {len(problems)} parameters differ:\n  " + "\n  ".join(problems)
        )
    return tree_lib.unflatten(_stacked(arrays, config.layers) if one_by_one else arrays)


def save_siglip(path: str | Path, tree: tree_lib.Tree) -> None:
    """Writes the image tower under `params/img/`, blocks stacked, dtypes as they are."""
    arrays = {f"{ROOTS[0]}{TOWER}{n}": np.asarray(a) for n, a in tree_lib.flatten(tree).items()}
    with Path(path).open("wb") as file:  # an open file, because savez would append to a bare name
        np.savez(file, allow_pickle=False, **arrays)


def _split(path: str) -> tuple[Path, str]:
    """Splits FILE.npz:SUB/TREE; without a sub-tree it is empty."""
    found = re.fullmatch(r"(.+\.npz):([\w/]*\w)", path)
    location, subtree = (found[1], f"{found[2]}/") if found else (path, "")
    return locate.resolve(location), subtree


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
        if any(name.startswith(root) for name in names):
            names = _below(names, root)
            break
    if subtree:
        names = _below(names, subtree)
        if not names:
            raise ValueError(f"{file}: must hold the sub-tree {subtree!r}, but no key begins so")
    names = {n: key for n, key in names.items() if not any(re.fullmatch(r, n) for r in NOT_USED)}
    inside = _below(names, TOWER)
    outside = {n: key for n, key in names.items() if not n.startswith(TOWER)}
    return inside | outside


def _below(names: dict[str, str], prefix: str) -> dict[str, str]:
    return {n.removeprefix(prefix): key for n, key in names.items() if n.startswith(prefix)}


def _shapes(config: config_lib.SiglipConfig) -> Shapes:
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


def _stacked(arrays: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """Inverse of `_unstacked`, on arrays."""
    first = f"{BLOCKS}_0/"
    stacked = {n: a for n, a in arrays.items() if not n.startswith(f"{BLOCKS}_")}
    for rest in (n.removeprefix(first) for n in arrays if n.startswith(first)):
        each = [arrays[f"{BLOCKS}_{i}/{rest}"] for i in range(layers)]
        stacked[f"{BLOCKS}/{rest}"] = np.stack(each)
    return stacked


def _read(archive: np.lib.npyio.NpzFile, key: str, file: Path) -> np.ndarray:
    """Returns an array in float32, or as it is if it holds no floating point numbers."""
    try:
        array = archive[key]
    except ValueError as error:  # a pickle, or a header that numpy cannot read
        raise ValueError(f"{file}: {key}: must be a plain array ({error})") from error
    if array.dtype == np.dtype("V2"):
        array = array.view(ml_dtypes.bfloat16)  # numpy forgets the name of bfloat16 in files
    elif array.dtype.kind != "f":
        return array
    return array.astype(np.float32)


def _misfit(
    name: str,
    expected: tuple[int, ...],
    found: np.ndarray,
    config: config_lib.SiglipConfig,
) -> str:
    """Says how an array differs from what was expected."""
    if found.dtype != np.float32:
        return f"{name}: expected floating point numbers, got {found.dtype}"
    text = f"{name}: expected {list(expected)}, got {list(found.shape)}"
    if name == "pos_embedding" and found.ndim == 3:
        side = round(found.shape[1] ** 0.5)
        text += (
            f" (the file is for images of {side * config.patch} pixels, the config asks for"
            f" {config.image_size}; positions are not resampled: take the file of that size, or"
            f" set model.siglip.image_size={side * config.patch})"
        )
    return text
