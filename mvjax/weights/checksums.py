"""CRC-32 checksums of tensors in a file's own header: their text, and the error when one is wrong.

The text has the same length for all sums, so that a header can be written first, the tensors after it, and
then the sums into the header.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

KEY = "mvjax.crc32"  # of the metadata: {tensor name: CRC-32 of its bytes} as JSON
_DIGITS = len(str(2**32 - 1))


def crc(tensor: np.ndarray) -> int:
    """Returns the checksum of a tensor's bytes in C order."""
    return zlib.crc32(raw(tensor))


def raw(tensor: np.ndarray) -> memoryview:
    """Returns the bytes of a tensor in C order."""
    return np.require(tensor, requirements="C").reshape(-1).view(np.uint8).data


def text(sums: Mapping[str, int]) -> str:
    """Returns the JSON of {tensor name: checksum}."""
    return "{" + ", ".join(f"{json.dumps(n)}: {s:>{_DIGITS}}" for n, s in sums.items()) + "}"


def parse(listed: str, *, place: str) -> dict[str, int]:
    """Inverse of `text`.

    Raises:
      ValueError: naming the place, if it is no such text.
    """
    try:
        return dict(json.loads(listed))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}: its header is corrupt, in {KEY}: {error}") from error


def refuse_changed(path: Path, names: Iterable[str]) -> None:
    """Raises ValueError if there are names, listing them."""
    if listed := sorted(names):
        raise ValueError(
            f"{path}: the bytes of these tensors are not those that were written: {listed};"
            " the file is damaged. Fetch or make it again."
        )
