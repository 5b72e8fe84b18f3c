"""The hard digits world's images: two to four digits in the corners, scribbles between them, more noise.

One digit of each image is white. No two digits of an image are equal, and no two have one colour, so that
a digit, a colour or a place names at most one of them. Scans and their splits are those of `digits.world`.
Everything is a pure function of its seed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from mvjax.digits import world

PLACES = ("top left", "top right", "bottom left", "bottom right")
WHITE = "white"
COUNTS = (2, 3, 4)  # digits in an image
LARGEST_TOTAL = 9  # of the digits whose sum can be asked: it is said as one digit

_SPLITS: tuple[world.Split, ...] = ("train", "test")  # the order is part of the seed
_NOISE = 100  # levels of background noise, of 256
_SCRIBBLE = 0.5  # probability that a corner without a digit has a scribble
_BLOCK = 2  # pixels of a scan, the side of the blocks that a scribble has shuffled


@dataclasses.dataclass(frozen=True)
class Item:
    """One digit of an image."""

    digit: int  # 0..9
    colour: str  # a key of `world.COLOURS`
    place: str  # one of PLACES


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is true of an image: its digits, in the order of PLACES."""

    items: tuple[Item, ...]

    def __post_init__(self):
        for name, known in (("digit", range(10)), ("colour", world.COLOURS), ("place", PLACES)):
            values = [getattr(item, name) for item in self.items]
            if len(set(values)) < len(values) or not set(values) <= set(known):
                raise ValueError(
                    f"Facts: expected different {name}s of {list(known)}, got {values}"
                )
        if not any(item.colour == WHITE for item in self.items):
            raise ValueError(f"Facts: expected one {WHITE} digit, got none in {self.items}")

    @property
    def white(self) -> Item:
        """The white digit."""
        return next(item for item in self.items if item.colour == WHITE)

    @property
    def total(self) -> int:
        """The sum of the digits."""
        return sum(item.digit for item in self.items)


@dataclasses.dataclass(frozen=True)
class Scene:
    """One image and its facts."""

    id: str
    facts: Facts
    scans: tuple[int, ...]  # indices of the items' scans in scikit-learn's set
    image: UInt8[np.ndarray, "48 48 3"]


def scenes(split: world.Split, count: int, seed: int) -> list[Scene]:
    """Returns `count` random scenes of a split; scene i is the same for every count."""
    return [scene(split, seed, i) for i in range(count)]


def scene(
    split: world.Split,
    seed: int,
    i: int,
    *,
    total: int | None = None,
    fits: Callable[[Facts], bool] | None = None,
) -> Scene:
    """Scene i of a split; with `total`, the digits have that sum; with `fits`, the facts meet it."""
    rng = np.random.default_rng([seed, _SPLITS.index(split), i])
    facts = random_facts(rng, total=total)
    while fits is not None and not fits(facts):
        facts = random_facts(rng, total=total)
    candidates = world.scan_indices(split)
    digits = world.labels()[candidates]
    scans = tuple(int(rng.choice(candidates[digits == item.digit])) for item in facts.items)
    strange = rng.choice(candidates, len(PLACES))
    glyphs = [world.upscale(world.scans()[scan]) for scan in scans]
    return Scene(f"{split}-{seed}-{i:05d}", facts, scans, paint(facts, glyphs, strange, rng))


def random_facts(rng: np.random.Generator, *, total: int | None = None) -> Facts:
    """Draws different digits in different colours and places; with `total`, digits of that sum.

    With a total, all sets of digits with that sum are equally likely; there are some for 1 to 9.
    """
    if total is None:
        count = int(rng.choice(COUNTS))
        digits = rng.permutation(10)[:count]
    else:
        sets = digit_sets(total)
        digits = rng.permutation(sets[int(rng.integers(len(sets)))])
        count = len(digits)
    others = [colour for colour in world.COLOURS if colour != WHITE]
    colours = rng.permutation([WHITE, *rng.permutation(others)[: count - 1]])
    places = np.sort(rng.permutation(len(PLACES))[:count])
    return Facts(
        tuple(
            Item(int(d), str(c), PLACES[p]) for d, c, p in zip(digits, colours, places, strict=True)
        )
    )


def digit_sets(total: int) -> list[tuple[int, ...]]:
    """All sets of digits of an image that have a sum."""
    every = (s for n in COUNTS for s in itertools.combinations(range(10), n))
    return [digits for digits in every if sum(digits) == total]


def paint(
    facts: Facts,
    glyphs: Sequence[Float[np.ndarray, "24 24"]],
    strange: Int[np.ndarray, " places"],
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "48 48 3"]:
    """Paints a glyph for each item, and scribbles made of the scans `strange` in some other corners."""
    canvas = world.background(rng, _NOISE)
    for item, glyph in zip(facts.items, glyphs, strict=True):
        world.stamp(canvas, glyph, item.colour, item.place, rng)
    taken = {item.place for item in facts.items}
    for place, scan in zip(PLACES, strange, strict=True):
        if place not in taken and rng.random() < _SCRIBBLE:
            colour = list(world.COLOURS)[rng.integers(len(world.COLOURS))]
            world.stamp(canvas, scribble(world.scans()[scan], rng), colour, place, rng)
    return np.rint(canvas).astype(np.uint8)


def scribble(
    scan: Float[np.ndarray, "8 8"], rng: np.random.Generator
) -> Float[np.ndarray, "24 24"]:
    """A scan's blocks of pixels in random order, enlarged: as much ink as a digit, and none to read."""
    side = len(scan) // _BLOCK
    blocks = scan.reshape(side, _BLOCK, side, _BLOCK).swapaxes(1, 2).reshape(-1, _BLOCK, _BLOCK)
    mixed = rng.permutation(blocks).reshape(side, side, _BLOCK, _BLOCK).swapaxes(1, 2)
    return world.upscale(np.ascontiguousarray(mixed.reshape(scan.shape)))
