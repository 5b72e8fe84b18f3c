"""The digits world's images: a scanned digit, in a colour, at a place of a dark, noisy canvas.

The scans are the 1,797 that ship with scikit-learn; the train and test splits share none.
Everything is a pure function of its seed.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

CANVAS = 48  # pixels, the side of an image
GLYPH = 24  # pixels, the side of a drawn scan: 8 upscaled by 3

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {  # RGB of full ink
    "red": (235, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 90, 250),
    "yellow": (240, 215, 30),
    "purple": (180, 50, 225),
    "white": (240, 240, 240),
}
PLACES = {  # first row and column of the glyph, before jitter
    "top left": (0, 0),
    "top right": (0, 24),
    "bottom left": (24, 0),
    "bottom right": (24, 24),
    "middle": (12, 12),
}

Split = Literal["train", "test"]

_SPLITS: tuple[Split, ...] = get_args(Split)  # the order is part of the seed
_TEST_SHARE = 0.2
_SPLIT_SEED = 0  # part of the world's definition: the shipped encoder saw these train scans only
_JITTER = 2  # pixels; corners move inwards, the middle both ways: places stay 9 pixels apart
_NOISE = 40  # levels of background noise, of 256
_INK_LOSS = 0.2  # the strongest ink of an image is between 1 - _INK_LOSS and 1


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is true of an image, and what the talk is about."""

    digit: int  # 0..9
    colour: str  # a key of COLOURS
    place: str  # a key of PLACES

    def __post_init__(self):
        for name, known in (("colour", COLOURS), ("place", PLACES), ("digit", range(10))):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"Facts.{name}: must be one of {list(known)}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class Scene:
    """One image and its facts."""

    id: str
    facts: Facts
    scan: int  # index of the scan in scikit-learn's set
    image: UInt8[np.ndarray, "48 48 3"]


def scenes(split: Split, count: int, seed: int) -> list[Scene]:
    """Returns `count` random scenes of a split; scene i is the same for every count."""
    candidates = scan_indices(split)
    drawn = []
    for i in range(count):
        rng = np.random.default_rng([seed, _SPLITS.index(split), i])
        scan = int(rng.choice(candidates))
        facts = random_facts(scan, rng)
        drawn.append(Scene(f"{split}-{seed}-{i:05d}", facts, scan, draw(scan, facts, rng)))
    return drawn


def random_facts(scan_index: int, rng: np.random.Generator) -> Facts:
    """Returns the digit of a scan with a uniformly random colour and place."""
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    place = list(PLACES)[rng.integers(len(PLACES))]
    return Facts(int(labels()[scan_index]), colour, place)


def draw(scan_index: int, facts: Facts, rng: np.random.Generator) -> UInt8[np.ndarray, "48 48 3"]:
    """Draws a scan as the facts say, with random jitter, ink and background.

    Raises:
      ValueError: if the scan shows another digit than the facts.
    """
    label = int(labels()[scan_index])
    if label != facts.digit:
        raise ValueError(f"draw: scan {scan_index} shows {label}, but the facts say {facts.digit}")
    return paint(upscale(scans()[scan_index]), facts, rng)


def paint(
    glyph: Float[np.ndarray, "24 24"], facts: Facts, rng: np.random.Generator
) -> UInt8[np.ndarray, "48 48 3"]:
    """Paints ink of strength 0..1 onto a noisy canvas; the facts' digit is not looked at."""
    canvas = background(rng, _NOISE)
    stamp(canvas, glyph, facts.colour, facts.place, rng)
    return np.rint(canvas).astype(np.uint8)


def background(rng: np.random.Generator, noise: int) -> Float[np.ndarray, "48 48 3"]:
    """A canvas of random levels below `noise`."""
    return rng.integers(0, noise, (CANVAS, CANVAS, 3), dtype=np.uint8).astype(np.float32)


def stamp(
    canvas: Float[np.ndarray, "48 48 3"],
    glyph: Float[np.ndarray, "24 24"],
    colour: str,
    place: str,
    rng: np.random.Generator,
) -> None:
    """Paints ink of strength 0..1 into the canvas, with random jitter and strength."""
    top, left = (_jittered(start, rng) for start in PLACES[place])
    strength = 1 - _INK_LOSS * rng.random(dtype=np.float32)
    ink = (strength * glyph)[:, :, None]
    patch = canvas[top : top + GLYPH, left : left + GLYPH]
    patch *= 1 - ink
    patch += ink * np.asarray(COLOURS[colour], np.float32)


def upscale(scan: Float[np.ndarray, "8 8"]) -> Float[np.ndarray, "24 24"]:
    """Enlarges a scan three times, bilinearly."""
    return np.asarray(Image.fromarray(scan).resize((GLYPH, GLYPH), Image.Resampling.BILINEAR))


@functools.cache
def scan_indices(split: Split) -> Int[np.ndarray, " scans"]:
    """The scans of a split, ascending: four fifths of each digit train, the others test (read-only)."""
    test = np.zeros(len(labels()), bool)
    rng = np.random.default_rng(_SPLIT_SEED)
    for digit in range(10):
        members = np.flatnonzero(labels() == digit)
        test[rng.permutation(members)[: round(_TEST_SHARE * len(members))]] = True
    found = np.flatnonzero(test if split == "test" else ~test)
    found.flags.writeable = False
    return found


def scans() -> Float[np.ndarray, "scans 8 8"]:
    """Returns all scans, ink in 0..1; read-only."""
    return _load()[0]


def labels() -> Int[np.ndarray, " scans"]:
    """Returns the digit of each scan; read-only."""
    return _load()[1]


@functools.cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets  # here, because it takes a second to import

    images, digits = datasets.load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    images.flags.writeable = digits.flags.writeable = False
    return images, digits


def _jittered(start: int, rng: np.random.Generator) -> int:
    """Moves a corner inwards, the middle to either side."""
    step = int(rng.integers(_JITTER + 1))
    if start in (0, CANVAS - GLYPH):
        return abs(start - step)
    return start - step // 2 if rng.integers(2) else start + step // 2
