"""Trains the hard digits world's tiny SigLIP on train digits and writes it in big_vision's npz layout.

    python tools/make_hard_siglip.py    # minutes of one idle core; prints the accuracy table

The digits world's own encoder (`make_tiny_siglip.py`) has seen one digit an image, and tells little of
four. This one is of the same size and learns two things: each patch token tells what its corner shows
(digit or none, colour and place, read linearly off it; the scan off a corner's mean); and a learned query
for each digit, colour and place finds its corner by a softmax over the tokens, as cross-attention will.
Scored by linear probes of the tokens of each corner on held-out digits, beside the digits world's encoder,
and by the share of questions of `digits-hard` for which the probes read all that is needed: the ceiling.
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
from mvjax.digits.hard import talk, world
from mvjax.nn import siglip
from mvjax.weights import big_vision

OUT = Path(frozen_models.__file__).parent / "assets" / "siglip_hard.npz"
ENCODER: schema.SiglipConfig = frozen_models.MODEL.siglip
COPIES = 36  # glyphs prepared of each train scan, on average
# values of each attribute; the class of a corner without a digit is the next number
NONE = {"digit": len(easy.DIGITS), "colour": len(easy.COLOURS), "place": len(world.PLACES)}
_WHITE = [*easy.COLOURS].index(world.WHITE)
SIDE = ENCODER.image_size // ENCODER.patch // 2  # patches along a corner


class Logits(NamedTuple):
    """What the heads read."""

    tokens: dict[str, jax.Array]  # by attribute [B, S, classes], of what a token's corner shows
    # by the attribute that is asked for, by the one that is read: [B, queries, classes]
    found: dict[str, dict[str, jax.Array]]
    scans: jax.Array  # [B, 4, 64]


class Reader(nn.Module):
    """Image tower and the heads that training needs."""

    @nn.compact
    def __call__(self, pixels) -> Logits:
        """Encodes images and reads them."""
        tokens = siglip.Siglip(ENCODER, name="img")(pixels)
        heads = {name: nn.Dense(count + 1, name=name) for name, count in NONE.items()}
        found = {}
        for name, count in NONE.items():
            start = nn.initializers.normal(1.0)
            queries = self.param(f"find_{name}", start, (count, ENCODER.width))
            scores = jnp.einsum("BSE,QE->BQS", tokens, queries) / np.sqrt(ENCODER.width)
            pooled = jnp.einsum("BQS,BSE->BQE", jax.nn.softmax(scores), tokens)
            found[name] = {key: head(pooled) for key, head in heads.items()}
        by_token = {key: head(tokens) for key, head in heads.items()}
        return Logits(by_token, found, nn.Dense(64, name="scan")(corners(tokens).mean(2)))


class Examples(NamedTuple):
    """Training images and what their corners show, in the order of `world.PLACES`."""

    images: np.ndarray  # uint8 [n, 48, 48, 3]
    classes: np.ndarray  # int32 [n, 4, 3], of the attributes in the order of NONE
    scans: np.ndarray  # float32 [n, 4, 64], distorted; zero where there is none


def main() -> None:
    """Trains, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.process_time()
    params = jax.tree.map(np.asarray, train(args.steps, args.seed)["img"])
    print(f"trained {args.steps} steps in {time.process_time() - start:.0f} CPU s")
    shipped = big_vision.load_siglip(frozen_models.FROZEN.siglip, ENCODER)
    for name, tower in (("this encoder", params), ("the digits world's", shipped)):
        row = probe(tower, args.seed)
        print(f"{name:20}" + "".join(f"{fact} {share:.1%}  " for fact, share in row.items()))
    big_vision.save_siglip(args.out, params)
    print(f"wrote {args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


def train(steps: int, seed: int) -> dict:
    """Returns the parameters of the tower and its heads after `steps` steps."""
    rng = np.random.default_rng(seed)
    examples = _examples(rng)
    model = Reader()
    pixels = images_lib.normalize(examples.images[:500])
    params = jax.jit(model.init)(jax.random.key(seed), pixels)["params"]
    make_tiny_siglip.center(params["img"], pixels)

    def losses(params, pixels, batch):
        read = model.apply({"params": params}, pixels)
        assert isinstance(read, Logits)
        parts = {"scan": jnp.square(read.scans - batch.scans).mean()}
        for i, name in enumerate(NONE):
            parts[name] = _corner_loss(read.tokens[name], batch.classes[:, :, i])
            parts[f"find {name}"] = _found_loss(read.found[name], batch.classes, i)
        return parts

    return make_tiny_siglip.minimize(losses, params, examples, steps, rng)


def probe(params: dict, seed: int) -> dict[str, float]:
    """Returns how well linear probes of each corner's mean token read held-out digits.

    By attribute, the accuracy over corners with a digit; "no digit", over the others; by kind of question,
    the share of scenes of which all is read that the answer needs: the corner of the white digit, those of
    all digits (`refer`, `beside`, `sum`: more than they need), or which corners have digits (`count`).
    """
    train_x, train_y = _corner_tokens(params, world.scenes("train", 3000, seed))
    probes = {
        (i, q): make_tiny_siglip.fit_probe(train_x[:, q], train_y[:, q, i], none + 1, attend=False)
        for i, none in enumerate(NONE.values())
        for q in range(len(world.PLACES))
    }

    def read(scenes: list[world.Scene]) -> tuple[np.ndarray, np.ndarray]:
        """Returns what the probes read and what is true [scenes, 4, 3]."""
        x, y = _corner_tokens(params, scenes)
        found = [
            [np.asarray(probes[i, q](x[:, q])).argmax(-1) for i in range(len(NONE))]
            for q in range(len(world.PLACES))
        ]
        return np.moveaxis(np.array(found), 2, 0), y

    found, y = read(world.scenes("test", 1500, seed))
    shown = y[:, :, 0] < NONE["digit"]
    row = {name: float((found == y)[shown][:, i].mean()) for i, name in enumerate(NONE)}
    row["no digit"] = float((found == y)[~shown][:, 0].mean())
    for kind in talk.KINDS:
        scenes = [talk.scene(kind, "test", seed, i) for i in range(500)]
        found, y = read(scenes)
        right, shown = (found == y)[:, :, :2].all(-1), y[:, :, 0] < NONE["digit"]
        needed = {"sum": shown, "refer": shown, "beside": shown}.get(kind, y[:, :, 1] == _WHITE)
        if kind == "count":
            right, needed = (found[:, :, 0] < NONE["digit"]) == shown, np.ones_like(shown)
        row[f"[{kind}]"] = float((right | ~needed).all(1).mean())
    return row


def corners(tokens):
    """Tokens [B, S, E] by corner: [B, 4, S / 4, E]."""
    batch, _, width = tokens.shape
    grid = tokens.reshape(batch, 2, SIDE, 2, SIDE, width)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 4, SIDE * SIDE, width)


def _corner_tokens(params: dict, scenes: list[world.Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens [scenes, 4, S / 4, E] and the classes [scenes, 4, 3]."""
    encode = jax.jit(lambda pixels: siglip.Siglip(ENCODER).apply({"params": params}, pixels))
    pixels = images_lib.normalize(np.stack([scene.image for scene in scenes]))
    tokens = [np.asarray(encode(chunk)) for chunk in np.split(pixels, len(pixels) // 500)]
    facts = [_classes(scene.facts) for scene in scenes]
    return corners(np.concatenate(tokens)), np.stack(facts)


def _classes(facts: world.Facts) -> np.ndarray:
    """The classes [4, 3] of what each corner shows; a place is known of empty corners, too."""
    classes = np.array([(NONE["digit"], NONE["colour"], p) for p in range(4)], np.int32)
    for item in facts.items:
        place = world.PLACES.index(item.place)
        classes[place, :2] = item.digit, [*easy.COLOURS].index(item.colour)
    return classes


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
        rows.append((world.paint(facts, moved, strange, rng), _classes(facts), small))
    images, classes, scans = (np.stack(column) for column in zip(*rows, strict=True))
    return Examples(images, classes, (scans - scans.mean((0, 1))) / scans.std())


def _corner_loss(logits: jax.Array, classes: np.ndarray) -> jax.Array:
    """Cross-entropy of every token against what its corner shows, classes [B, 4]."""
    by_corner = corners(logits)
    y = jnp.broadcast_to(classes[:, :, None], by_corner.shape[:3])
    return optax.softmax_cross_entropy_with_integer_labels(by_corner, y).mean()


def _found_loss(logits: dict[str, jax.Array], classes: np.ndarray, asked: int) -> jax.Array:
    """Cross-entropy of what the queries for digits that are there read of them."""
    shown = jnp.asarray(classes)[:, :, 0] < NONE["digit"]
    total = jnp.zeros(())
    for i, (name, values) in enumerate(logits.items()):
        at = jnp.minimum(classes[:, :, asked], values.shape[1] - 1)  # the query for each corner
        chosen = jnp.take_along_axis(values, at[:, :, None], axis=1)
        y = jnp.minimum(classes[:, :, i], NONE[name])
        each = optax.softmax_cross_entropy_with_integer_labels(chosen, y)
        total += (each * shown).sum() / shown.sum()
    return total


if __name__ == "__main__":
    main()
