"""Trains the digits world's tiny SigLIP on train digits and writes it in big_vision's npz layout.

    python tools/make_tiny_siglip.py            # 4 minutes on two cores; prints the accuracy table

Objective: SigLIP's sigmoid loss between images (attention-pooled) and captions (a tiny text tower),
plus digit, colour and place read linearly off every patch token, so that any pooling of the tokens
tells the facts. Scored by linear probes on held-out digits. Only the image tower is kept.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from PIL import Image

from mvjax import config as config_lib
from mvjax import tiny
from mvjax.data import images as images_lib
from mvjax.nn import siglip
from mvjax.tiny import world
from mvjax.weights import big_vision

OUT = Path(tiny.__file__).parent / "assets" / "siglip.npz"
TEXT = config_lib.SiglipConfig(width=64, layers=1, heads=4, hidden=128)
BATCH = 256
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
GLYPHS_PER_SCAN = 48  # distorted copies prepared of each train scan
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
        """Returns (SigLIP logits [B, B], attribute logits by token and by mean [B, S+1, all])."""
        tokens = siglip.Siglip(tiny.MODEL.siglip, name="img")(pixels)
        weights = jax.nn.softmax(nn.Dense(1, name="probe")(tokens), axis=1)
        image = _unit(nn.Dense(TEXT.width, name="image_out")((weights * tokens).sum(1)))
        x = nn.Embed(len(WORDS) + 1, TEXT.width, name="words")(words)
        x = x + self.param("positions", nn.initializers.normal(0.1), (1, CAPTION, TEXT.width))
        text = siglip.Encoder(TEXT, name="text")(x).mean(1)
        text = _unit(nn.Dense(TEXT.width, name="text_out")(text))
        scale = jnp.exp(self.param("log_scale", nn.initializers.constant(np.log(10)), ()))
        bias = self.param("bias", nn.initializers.constant(-5.0), ())
        readable = jnp.concatenate([tokens, tokens.mean(1, keepdims=True)], 1)
        heads = nn.Dense(sum(FACTS.values()), name="heads")(readable)
        return scale * jnp.einsum("BE,bE->Bb", image, text) + bias, heads


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
    glyphs, digits = _distorted_glyphs(rng)
    model = TwoTowers()
    params = model.init(jax.random.key(seed), *_batch(glyphs, digits, rng)[:2])["params"]
    rate = optax.warmup_cosine_decay_schedule(0, LEARNING_RATE, steps // 20, steps)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=WEIGHT_DECAY)
    )
    state = optimiser.init(params)

    @jax.jit
    def step(params, state, pixels, words, facts):
        def loss(params):
            logits, heads = model.apply({"params": params}, pixels, words)
            return _sigmoid_loss(logits, facts) + _attribute_loss(heads, facts)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    for i in range(steps):
        params, state, value = step(params, state, *_batch(glyphs, digits, rng))
        if i % 100 == 0 or i == steps - 1:
            print(f"step {i:5d} loss {value:.4f}", flush=True)
    return params


def probe(params: dict, seed: int) -> dict[str, dict[str, float]]:
    """Returns {pooling: {fact: accuracy on held-out digits}} of linear probes on frozen tokens."""
    train_x, train_y = _tokens(params, world.scenes("train", 4000, seed))
    test_x, test_y = _tokens(params, world.scenes("test", 3000, seed))
    table: dict[str, dict[str, float]] = {"mean pooling": {}, "attention pooling": {}}
    for pooling, row in table.items():
        for i, (fact, classes) in enumerate(FACTS.items()):
            attend = pooling == "attention pooling"
            logits = _fit_probe(train_x, train_y[:, i], classes, attend=attend)(test_x)
            row[fact] = float((logits.argmax(-1) == test_y[:, i]).mean())
    return table


def _fit_probe(x, y, classes: int, *, attend: bool):
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

        updates, state = optimiser.update(jax.grad(loss)(w), state, w)
        return optax.apply_updates(w, updates), state

    optimiser = optax.adam(1e-2)
    state = optimiser.init(w)
    rng = np.random.default_rng(0)
    for _ in range(400):
        rows = rng.integers(len(x), size=BATCH)
        w, state = step(w, state, x[rows], y[rows])
    return lambda x: logits(w, x)


def _tokens(params: dict, scenes: list[world.Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens [scenes, S, E] and the facts' indices [scenes, 3]."""
    encode = jax.jit(
        lambda pixels: siglip.Siglip(tiny.MODEL.siglip).apply({"params": params}, pixels)
    )
    pixels = images_lib.normalise(np.stack([scene.image for scene in scenes]))
    tokens = [encode(jnp.asarray(chunk)) for chunk in np.split(pixels, len(pixels) // 500)]
    return np.concatenate(tokens), np.stack([_indices(scene.facts) for scene in scenes])


def _batch(glyphs: np.ndarray, digits: np.ndarray, rng: np.random.Generator):
    """Returns (pixels [B, 48, 48, 3], caption words [B, CAPTION], facts' indices [B, 3])."""
    chosen = rng.integers(len(glyphs), size=BATCH)
    facts = [
        world.Facts(
            int(digits[i]), str(rng.choice([*world.COLOURS])), str(rng.choice([*world.PLACES]))
        )
        for i in chosen
    ]
    pixels = [world.paint(glyphs[i] / np.float32(255), f, rng) for i, f in zip(chosen, facts)]
    words = np.stack([_caption(f, rng) for f in facts])
    return (
        jnp.asarray(images_lib.normalise(np.stack(pixels))),
        jnp.asarray(words),
        jnp.asarray(np.stack([_indices(f) for f in facts])),
    )


def _distorted_glyphs(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns distorted train scans, uint8 [glyphs, 24, 24], and their digits [glyphs]."""
    train = world.scan_indices("train")
    glyphs = []
    for scan in train:
        image = Image.fromarray(world.upscale(world.scans()[scan]))
        for _ in range(GLYPHS_PER_SCAN):
            matrix = np.eye(2) + rng.normal(0, [[0.09, 0.14], [0.09, 0.09]])
            centre = (world.GLYPH - 1) / 2
            offset = centre - matrix @ [centre, centre] + rng.normal(0, 0.8, 2)
            coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
            turned = image.transform(
                image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
            )
            ink = np.asarray(turned) ** rng.uniform(0.75, 1.35)
            glyphs.append(np.rint(255 * ink).astype(np.uint8))
    return np.stack(glyphs), np.repeat(world.labels()[train], GLYPHS_PER_SCAN)


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


def _attribute_loss(heads: jax.Array, facts: jax.Array) -> jax.Array:
    """Cross-entropy of the three facts, over tokens and their mean, half each."""
    total = jnp.zeros(())
    ends = np.cumsum([*FACTS.values()])
    for i, part in enumerate(jnp.split(heads, ends[:-1], axis=-1)):
        y = jnp.broadcast_to(facts[:, i, None], part.shape[:2])
        each = optax.softmax_cross_entropy_with_integer_labels(part, y)
        total += 0.5 * each[:, :-1].mean() + 0.5 * each[:, -1].mean()
    return total


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


if __name__ == "__main__":
    main()
