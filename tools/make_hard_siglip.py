"""Trains the hard digits world's tiny SigLIP on train digits and writes it in big_vision's npz layout.

    python tools/make_hard_siglip.py    # minutes of one idle core; prints the accuracy table

The digits world's own encoder (`make_tiny_siglip.py`) has seen one digit an image, and tells little of
four. This one is of the same size and learns what each patch token's corner shows: digit (or none),
colour and place, read linearly off every token, and the scan, read off a corner's mean. Scored by linear probes
of the tokens of each corner on held-out digits, beside the digits world's encoder.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import make_tiny_siglip
import numpy as np
import optax
from flax import linen as nn
from PIL import Image

from mvjax.config import schema
from mvjax.data import images as images_lib
from mvjax.digits import frozen_models
from mvjax.digits import world as easy
from mvjax.digits.hard import world
from mvjax.nn import siglip
from mvjax.weights import big_vision

OUT = Path(frozen_models.__file__).parent / "assets" / "siglip_hard.npz"
ENCODER: schema.SiglipConfig = frozen_models.MODEL.siglip
COPIES = 36  # glyphs prepared of each train scan, on average
NONE = {"digit": len(easy.DIGITS), "colour": len(easy.COLOURS)}  # the class of a corner without one
SIDE = ENCODER.image_size // ENCODER.patch // 2  # patches along a corner


class Reader(nn.Module):
    """Image tower and the heads that training needs."""

    @nn.compact
    def __call__(self, pixels):
        """Returns logits of digit [B, S, 11], colour [B, S, 7], place [B, S, 4], and scans [B, 4, 64]."""
        tokens = siglip.Siglip(ENCODER, name="img")(pixels)
        digit = nn.Dense(NONE["digit"] + 1, name="digit")(tokens)
        colour = nn.Dense(NONE["colour"] + 1, name="colour")(tokens)
        place = nn.Dense(len(world.PLACES), name="place")(tokens)
        return digit, colour, place, nn.Dense(64, name="scan")(corners(tokens).mean(2))


class Examples(NamedTuple):
    """Training images and what their corners show, in the order of `world.PLACES`."""

    images: np.ndarray  # uint8 [n, 48, 48, 3]
    digits: np.ndarray  # int32 [n, 4]
    colours: np.ndarray  # int32 [n, 4]
    scans: np.ndarray  # float32 [n, 4, 64], distorted; zero where there is none


def main() -> None:
    """Trains, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.process_time()
    params = jax.tree.map(np.asarray, train(args.steps, args.seed)["img"])
    print(f"trained {args.steps} steps in {time.process_time() - start:.0f} CPU s")
    shipped = big_vision.load_siglip(frozen_models.FROZEN.siglip, ENCODER)
    for name, tower in (("this encoder", params), ("the digits world's", shipped)):
        row = probe(tower, args.seed)
        print(f"{name:20}" + "".join(f"{fact} {share:.2%}  " for fact, share in row.items()))
    big_vision.save_siglip(args.out, params)
    print(f"wrote {args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


def train(steps: int, seed: int) -> dict:
    """Returns the parameters of the tower and its heads after `steps` steps."""
    rng = np.random.default_rng(seed)
    examples = _examples(rng)
    model = Reader()
    pixels = images_lib.normalize(examples.images[:500])
    params = jax.jit(model.init)(jax.random.key(seed), pixels)["params"]
    embedding = params["img"]["embedding"]  # start from centered patches, as in the easy world
    embedding["bias"] = -jnp.einsum("pqcE,c->E", embedding["kernel"], pixels.mean((0, 1, 2)))
    places = np.tile(np.arange(len(world.PLACES)), (make_tiny_siglip.BATCH, 1))
    optimizer = make_tiny_siglip.muon(steps)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, pixels, batch):
        def loss(params):
            digit, colour, place, scans = model.apply({"params": params}, pixels)
            parts = {
                "digit": _corner_loss(digit, batch.digits),
                "colour": _corner_loss(colour, batch.colours),
                "place": _corner_loss(place, places),
                "scan": jnp.square(scans - batch.scans).mean(),
            }
            return sum(parts.values()), parts

        gradients, parts = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, parts

    for i in range(steps):
        rows = rng.integers(len(examples.images), size=make_tiny_siglip.BATCH)
        batch = Examples(*(column[rows] for column in examples))
        params, state, parts = step(params, state, images_lib.normalize(batch.images), batch)
        if i % 100 == 0 or i == steps - 1:
            losses = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
            print(f"step {i:5d} losses: {losses}", flush=True)
    return params


def probe(params: dict, seed: int) -> dict[str, float]:
    """Returns the accuracy on held-out digits of linear probes of each corner's mean token."""
    train_x, train_y = _corner_tokens(params, world.scenes("train", 3000, seed))
    test_x, test_y = _corner_tokens(params, world.scenes("test", 1500, seed))
    row = {}
    for i, (fact, none) in enumerate(NONE.items()):
        right = [
            make_tiny_siglip.fit_probe(train_x[:, q], train_y[:, q, i], none + 1, attend=False)(
                test_x[:, q]
            ).argmax(-1)
            == test_y[:, q, i]
            for q in range(len(world.PLACES))
        ]
        right, known = np.stack(right, 1), test_y[:, :, i] < none
        row[fact] = float(right[known].mean())
        if fact == "digit":
            row["no digit"] = float(right[~known].mean())
    return row


def corners(tokens):
    """Tokens [B, S, E] by corner: [B, 4, S / 4, E]."""
    batch, _, width = tokens.shape
    grid = tokens.reshape(batch, 2, SIDE, 2, SIDE, width)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 4, SIDE * SIDE, width)


def _corner_tokens(params: dict, scenes: list[world.Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens [scenes, 4, S / 4, E] and (digit, colour) of each corner [scenes, 4, 2]."""
    encode = jax.jit(lambda pixels: siglip.Siglip(ENCODER).apply({"params": params}, pixels))
    pixels = images_lib.normalize(np.stack([scene.image for scene in scenes]))
    tokens = [np.asarray(encode(chunk)) for chunk in np.split(pixels, len(pixels) // 500)]
    facts = [np.stack(_classes(scene.facts), 1) for scene in scenes]
    return corners(np.concatenate(tokens)), np.stack(facts)


def _classes(facts: world.Facts) -> tuple[np.ndarray, np.ndarray]:
    digits = np.full(len(world.PLACES), NONE["digit"], np.int32)
    colours = np.full(len(world.PLACES), NONE["colour"], np.int32)
    for item in facts.items:
        place = world.PLACES.index(item.place)
        digits[place], colours[place] = item.digit, [*easy.COLOURS].index(item.colour)
    return digits, colours


def _examples(rng: np.random.Generator) -> Examples:
    candidates = easy.scan_indices("train")
    labels = easy.labels()[candidates]
    glyphs = {int(s): Image.fromarray(easy.upscale(easy.scans()[s])) for s in candidates}
    rows = []
    for _ in range(COPIES * len(candidates) // 3):  # three digits an image on average
        facts = world.random_facts(rng)
        scans = [int(rng.choice(candidates[labels == item.digit])) for item in facts.items]
        moved = [make_tiny_siglip.distorted(glyphs[scan], rng) for scan in scans]
        small = np.zeros((len(world.PLACES), 64), np.float32)
        for item, glyph in zip(facts.items, moved, strict=True):
            shape = glyph.reshape(8, 3, 8, 3).mean((1, 3)).ravel()
            small[world.PLACES.index(item.place)] = shape
        strange = rng.choice(candidates, len(world.PLACES))
        rows.append((world.paint(facts, moved, strange, rng), *_classes(facts), small))
    images, digits, colours, scans = (np.stack(column) for column in zip(*rows, strict=True))
    return Examples(images, digits, colours, (scans - scans.mean((0, 1))) / scans.std())


def _corner_loss(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Cross-entropy of every token against what its corner shows."""
    by_corner = corners(logits)
    y = jnp.broadcast_to(classes[:, :, None], by_corner.shape[:3])
    return optax.softmax_cross_entropy_with_integer_labels(by_corner, y).mean()


if __name__ == "__main__":
    main()
