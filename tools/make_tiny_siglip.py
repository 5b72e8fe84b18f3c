"""Trains the digits world's tiny SigLIP on train digits and writes it in big_vision's npz layout.

    python tools/make_tiny_siglip.py    # 3 minutes of one idle core; prints the accuracy table

Objective: SigLIP's sigmoid loss between images (attention-pooled) and captions (a tiny text tower).
So few images need help, hence also: digit, colour and place, read linearly off every patch token (any
pooling of the tokens then tells the facts), and the scan, read off their mean. Scored by linear
probes on held-out digits. Only the image tower is kept.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import linen as nn
from PIL import Image

from mvjax.config import schema
from mvjax.data import images as images_lib
from mvjax.digits import frozen_models, world
from mvjax.nn import siglip
from mvjax.weights import big_vision

OUT = Path(frozen_models.__file__).parent / "assets" / "siglip.npz"
TEXT = schema.SiglipConfig(width=64, layers=1, heads=4, hidden=128)
BATCH = 64
LEARNING_RATE = 6e-3
WEIGHT_DECAY = 0.1
COPIES = 40  # images prepared of each train scan, each distorted and painted anew
FACTS = {"digit": len(world.DIGITS), "colour": len(world.COLOURS), "place": len(world.PLACES)}
TEMPLATES = ("a {c} {d} at the {p}", "the {d} at the {p} is {c}", "{p} there is a {c} {d}")
WORDS = sorted(
    {w for t in TEMPLATES for w in t.split() if "{" not in w}
    | {*world.DIGITS, *world.COLOURS, *" ".join(world.PLACES).split()}
)
CAPTION = 8  # words; shorter captions are filled with id 0


class TwoTowers(nn.Module):
    """Image tower, text tower, and the heads that training needs."""

    @nn.compact
    def __call__(self, pixels, words):
        """Returns SigLIP logits [B, B], facts' logits by token and mean [B, S+1, all], scans [B, 64]."""
        tokens = siglip.Siglip(frozen_models.MODEL.siglip, name="img")(pixels)
        weights = jax.nn.softmax(nn.Dense(1, name="probe")(tokens), axis=1)
        image = _unit(nn.Dense(TEXT.width, name="image_out")((weights * tokens).sum(1)))
        x = nn.Embed(len(WORDS) + 1, TEXT.width, name="words")(words)
        x = x + self.param("positions", nn.initializers.normal(0.1), (1, CAPTION, TEXT.width))
        text = siglip.SiglipEncoder(TEXT, name="text")(x).mean(1)
        text = _unit(nn.Dense(TEXT.width, name="text_out")(text))
        scale = jnp.exp(self.param("log_scale", nn.initializers.constant(np.log(10)), ()))
        bias = self.param("bias", nn.initializers.constant(-5.0), ())
        readable = jnp.concatenate([tokens, tokens.mean(1, keepdims=True)], 1)
        facts = nn.Dense(sum(FACTS.values()), name="facts")(readable)
        scans = nn.Dense(64, name="scan")(tokens.mean(1))
        return scale * jnp.einsum("BE,bE->Bb", image, text) + bias, facts, scans


class Examples(NamedTuple):
    """Training images and what is known of each."""

    images: np.ndarray  # uint8 [n, 48, 48, 3]
    words: np.ndarray  # int32 [n, CAPTION]
    facts: np.ndarray  # int32 [n, 3]
    scans: np.ndarray  # float32 [n, 64], the distorted scan, standardized


def main() -> None:
    """Trains, scores, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    params = train(args.steps, args.seed)
    params = jax.tree.map(np.asarray, params["img"])
    print(f"trained {args.steps} steps in {time.perf_counter() - start:.0f} s")
    table = probe(params, args.seed)
    print(f"{'held-out accuracy':20}" + "".join(f"{fact:>9}" for fact in FACTS))
    for pooling, row in table.items():
        print(f"{pooling:20}" + "".join(f"{row[fact]:9.2%}" for fact in FACTS))
    big_vision.save_siglip(args.out, params)
    print(f"wrote {args.out}: {args.out.stat().st_size / 1e6:.2f} MB")


def train(steps: int, seed: int) -> dict:
    """Returns the parameters of both towers after `steps` steps."""
    rng = np.random.default_rng(seed)
    examples = _examples(rng)
    model = TwoTowers()
    pixels = images_lib.normalize(examples.images[:500])
    params = jax.jit(model.init)(jax.random.key(seed), pixels, examples.words[:500])["params"]
    center(params["img"], pixels)

    def losses(params, pixels, batch):
        logits, heads, scans = model.apply({"params": params}, pixels, batch.words)
        return {
            "captions": _sigmoid_loss(logits, batch.facts),
            **_fact_losses(heads, batch.facts),
            "scan": jnp.square(scans - batch.scans).mean(),
        }

    return minimize(losses, params, examples, steps, rng)


def center(tower: dict, pixels: np.ndarray) -> None:
    """Starts a tower from centered patches: most pixels are dark."""
    embedding = tower["embedding"]
    embedding["bias"] = -jnp.einsum("pqcE,c->E", embedding["kernel"], pixels.mean((0, 1, 2)))


def minimize(losses: Callable, params: dict, examples: Any, steps: int, rng: Any) -> dict:
    """Returns the parameters after `steps` steps on batches drawn from `examples`, a tuple of columns.

    `losses(params, pixels, batch)` names the parts of the loss; `examples.images` are normalized.
    """
    optimizer = muon(steps)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, pixels, batch):
        def loss(params):
            parts = losses(params, pixels, batch)
            return sum(parts.values()), parts

        gradients, parts = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, parts

    for i in range(steps):
        rows = rng.integers(len(examples.images), size=BATCH)
        batch = type(examples)(*(column[rows] for column in examples))
        params, state, parts = step(params, state, images_lib.normalize(batch.images), batch)
        if i % 100 == 0 or i == steps - 1:
            said = " ".join(f"{name} {value:.3f}" for name, value in parts.items())
            print(f"step {i:5d} losses: {said}", flush=True)
    return params


def probe(params: dict, seed: int) -> dict[str, dict[str, float]]:
    """Returns {pooling: {fact: accuracy on held-out digits}} of linear probes on frozen tokens."""
    train_x, train_y = _tokens(params, world.scenes("train", 4000, seed))
    test_x, test_y = _tokens(params, world.scenes("test", 3000, seed))
    table: dict[str, dict[str, float]] = {"mean pooling": {}, "attention pooling": {}}
    for pooling, row in table.items():
        for i, (fact, classes) in enumerate(FACTS.items()):
            attend = pooling == "attention pooling"
            logits = fit_probe(train_x, train_y[:, i], classes, attend=attend)(test_x)
            row[fact] = float((logits.argmax(-1) == test_y[:, i]).mean())
    return table


def fit_probe(x, y, classes: int, *, attend: bool):
    """Fits logits = W pool(x) + b; the pool is the mean, or a softmax with one learned query."""
    key = jax.random.key(0)
    width = x.shape[-1]
    w = {
        "kernel": jax.random.normal(key, (width, classes)) * 0.01,
        "bias": jnp.zeros((1, classes)),
        "query": jnp.zeros((width,)),
    }

    @jax.jit
    def logits(w, x):
        query = w["query"] if attend else jax.lax.stop_gradient(w["query"])
        weights = jax.nn.softmax(jnp.einsum("BSE,E->BS", x, query))
        return jnp.einsum("BS,BSE->BE", weights, x) @ w["kernel"] + w["bias"]

    @jax.jit
    def step(w, state, x, y):
        def loss(w):
            return optax.softmax_cross_entropy_with_integer_labels(logits(w, x), y).mean()

        updates, state = optimizer.update(jax.grad(loss)(w), state, w)
        return optax.apply_updates(w, updates), state

    optimizer = optax.adam(1e-2)
    state = optimizer.init(w)
    rng = np.random.default_rng(0)
    for _ in range(400):
        rows = rng.integers(len(x), size=BATCH)
        w, state = step(w, state, x[rows], y[rows])
    return lambda x: logits(w, x)


def _tokens(params: dict, scenes: list[world.Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens [scenes, S, E] and the facts' indices [scenes, 3]."""
    encode = jax.jit(
        lambda pixels: siglip.Siglip(frozen_models.MODEL.siglip).apply({"params": params}, pixels)
    )
    pixels = images_lib.normalize(np.stack([scene.image for scene in scenes]))
    tokens = [encode(jnp.asarray(chunk)) for chunk in np.split(pixels, len(pixels) // 500)]
    return np.concatenate(tokens), np.stack([_indices(scene.facts) for scene in scenes])


def muon(steps: int) -> optax.GradientTransformation:
    """Muon for the kernels of the image tower, which learns shapes in a third of AdamW's steps."""

    def dimensions(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: _matrix("/".join(key.key for key in path)), params
        )

    rate = optax.warmup_cosine_decay_schedule(0, LEARNING_RATE, steps // 20, steps)
    by_kind = optax.contrib.muon(
        rate,
        ns_steps=4,
        consistent_rms=0.2,  # steps as large as AdamW's, so that both take one rate
        weight_decay=WEIGHT_DECAY,
        adam_b2=0.99,
        muon_weight_dimension_numbers=dimensions,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), by_kind)


def _matrix(path: str) -> optax.contrib.MuonDimensionNumbers | None:
    """Returns which axes of a parameter are a matrix's rows and columns; None: it is for AdamW."""
    axes = {
        r"img/embedding/kernel": ((0, 1, 2), 3),
        r"img/.*/(query|key|value)/kernel": (1, (2, 3)),
        r"img/.*/out/kernel": ((1, 2), 3),
        r"img/.*/Dense_[01]/kernel": (1, 2),
    }
    found = [value for rule, value in axes.items() if re.fullmatch(rule, path)]
    return optax.contrib.MuonDimensionNumbers(*found[0]) if found else None


def _examples(rng: np.random.Generator) -> Examples:
    rows = []
    for scan in world.scan_indices("train"):
        glyph = Image.fromarray(world.upscale(world.scans()[scan]))
        for _ in range(COPIES):
            facts = world.random_facts(scan, rng)
            moved = distorted(glyph, rng)
            small = moved.reshape(8, 3, 8, 3).mean((1, 3)).ravel()
            image = world.paint(moved, facts, rng)
            rows.append((image, _caption(facts, rng), _indices(facts), small))
    images, words, indices, scans = (np.stack(column) for column in zip(*rows))
    return Examples(images, words, indices, (scans - scans.mean(0)) / scans.std())


def distorted(glyph: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Shifts, scales, turns and slants a glyph, and makes its strokes fainter or bolder."""
    matrix = np.eye(2) + rng.normal(0, [[0.09, 0.14], [0.09, 0.09]])
    center = np.full(2, (world.GLYPH - 1) / 2)
    offset = center - matrix @ center + rng.normal(0, 0.8, 2)
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    affine = Image.Transform.AFFINE
    moved = glyph.transform(glyph.size, affine, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(moved) ** np.float32(rng.uniform(0.75, 1.35))


def _caption(facts: world.Facts, rng: np.random.Generator) -> np.ndarray:
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    text = template.format(c=facts.colour, d=world.DIGITS[facts.digit], p=facts.place)
    ids = [WORDS.index(word) + 1 for word in text.split()]
    return np.pad(ids, (0, CAPTION - len(ids))).astype(np.int32)


def _indices(facts: world.Facts) -> np.ndarray:
    colour, place = [*world.COLOURS].index(facts.colour), [*world.PLACES].index(facts.place)
    return np.array([facts.digit, colour, place], np.int32)


def _sigmoid_loss(logits: jax.Array, facts: jax.Array) -> jax.Array:
    """SigLIP's loss; an image and a caption of the same facts are a pair, whoever's they are."""
    pair = (facts[:, None] == facts[None]).all(-1)
    return -jax.nn.log_sigmoid(jnp.where(pair, logits, -logits)).sum(-1).mean()


def _fact_losses(heads: jax.Array, facts: jax.Array) -> dict[str, jax.Array]:
    """Cross-entropy of each fact, half of it over the tokens, half of it at their mean."""
    losses = {}
    parts = jnp.split(heads, np.cumsum([*FACTS.values()])[:-1], axis=-1)
    for i, (fact, logits) in enumerate(zip(FACTS, parts)):
        y = jnp.broadcast_to(facts[:, i, None], logits.shape[:2])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        losses[fact] = 0.5 * each[:, :-1].mean() + 0.5 * each[:, -1].mean()
    return losses


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


if __name__ == "__main__":
    main()
