"""Which TPU slices Google Cloud has, and Google's own names for them, such as v5litepod-16.

The number in such a name counts chips of v5e and v6e and TensorCores, two a chip, of the others. Of the
slices that have as many, the name means the most cube-like, as in Google's tables. Sources: the pages of each
generation in the Cloud TPU documentation; for v4 and tpu7x, whose tables show few, also the device types of
https://github.com/AI-Hypercomputer/xpk (`system_characteristics.py`).
"""

from __future__ import annotations

import functools
import math
import re
from typing import NamedTuple

_SQUARES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_BOXES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_CUBE = 4  # chips along each edge; larger slices of three axes are whole cubes


class _Generation(NamedTuple):
    prefix: str  # of Google's names
    counted: int  # what the number in a name counts, a chip
    shapes: tuple[tuple[int, ...], ...]
    cubes: int = 0  # that the largest slice has


_GENERATIONS = {
    "v4": _Generation("v4", 2, _BOXES, 64),
    "v5e": _Generation("v5litepod", 1, _SQUARES),
    "v5p": _Generation("v5p", 2, _BOXES, 96),
    "v6e": _Generation("v6e", 1, _SQUARES),
    "tpu7x": _Generation("tpu7x", 2, ((1, 1, 1), *_BOXES), 144),
}
_OLD = ("v2", "v3")


def translated(name: str) -> str:
    """Returns CHIP:SHAPE of an accelerator name of Google's, such as v5litepod-16 or v5litepod-4x4.

    Any other name is returned as it is.

    Raises:
      ValueError: if it names a generation that is not supported, or a number of chips that no slice has.
    """
    match = re.fullmatch(r"(\w+)[-:](\d+(?:x\d+)*)", name)
    if match and match[1] in _OLD:
        raise ValueError(f"{match[1]} TPUs are not supported; supported: {', '.join(_GENERATIONS)}")
    known = {name: chip for chip, one in _GENERATIONS.items() for name in (chip, one.prefix)}
    if not match or match[1] not in known or name.startswith(f"{known[match[1]]}:"):
        return name
    chip = known[match[1]]
    if "x" in match[2]:
        return f"{chip}:{match[2]}"
    one, number = _GENERATIONS[chip], int(match[2])
    shapes = [shape for shape in _shapes(chip) if math.prod(shape) * one.counted == number]
    if not shapes:
        unit = "TensorCores, two a chip" if one.counted == 2 else "chips"
        sizes = sorted({math.prod(shape) * one.counted for shape in _shapes(chip)})
        near = sorted(sorted(sizes, key=lambda size: abs(size - number))[:6])
        listed = ", ".join(f"{one.prefix}-{size}" for size in near)
        raise ValueError(f"no slice has {number} {unit}; the nearest that exist: {listed}")
    return f"{chip}:{_text(min(shapes, key=sum))}"


def check(chip: str, shape: tuple[int, ...]) -> None:
    """Checks that a TPU generation has a slice of this shape, in chips.

    Raises:
      ValueError: naming the slices that exist.
    """
    one = _GENERATIONS[chip]
    cubes = one.cubes and not any(size % _CUBE for size in shape)  # may be turned
    if (tuple(sorted(shape)) if cubes else shape) in _shapes(chip):
        return
    listed = ", ".join(map(_text, one.shapes))
    if one.cubes:
        listed += (
            f", and from 4x4x4 on three multiples of {_CUBE}, such as 4x4x8, of at most"
            f" {one.cubes * _CUBE**3} chips"
        )
    same = [other for other in _shapes(chip) if math.prod(other) == math.prod(shape)]
    meant = f"; did you mean {chip}:{_text(min(same, key=sum))}?" if same else ""
    raise ValueError(f"no {chip} slice is {_text(shape)}{meant}\n{chip} slices: {listed}")


@functools.cache
def _shapes(chip: str) -> frozenset[tuple[int, ...]]:
    """All shapes of a generation, those of whole cubes with ascending sizes."""
    one = _GENERATIONS[chip]
    cubes = {
        (_CUBE * x, _CUBE * y, _CUBE * z)
        for x in range(1, one.cubes + 1)
        for y in range(x, one.cubes // x + 1)
        for z in range(y, one.cubes // (x * y) + 1)
    }
    return frozenset({*one.shapes, *cubes})


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
