"""The toy model and toy run of the tests; as a script (`toy.py FOLDER`) it trains, to be killed and rerun."""

import argparse
import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache as cache

from mvjax import gates, tree, types
from mvjax.config import schema
from mvjax.nn import model as model_lib
from mvjax.weights import big_vision, frozen_files, kyutai, rules

# T=9 S=4 D=24 E=20 F=66 N=4 H=6 L=3 K=7 Q=3 V=34 C=22 G=14; depformer d=16 n=2 h=8 f=44 L=2.
# All different, and even where a mesh axis of 2 divides them. B is 2 in model tests, 4 + 8 in a run's batch.
MODEL = schema.ModelConfig(
    backbone=schema.BackboneConfig(width=24, layers=3, heads=4, hidden=66, context=5),
    depformer=schema.DepformerConfig(width=16, layers=2, heads=2, hidden=44),
    siglip=schema.SiglipConfig(width=20, layers=2, heads=2, hidden=28, patch=4, image_size=8),
    cross_attention=schema.CrossAttentionConfig(gate=gates.Conditional(hidden=14)),
    text_vocab=34,
    audio_vocab=22,
    codebooks_out=3,
    delays=(0, 0, 1, 1, 0, 1, 1),
)
# For files of the runtimes: every number of heads its own, and image tokens S=9 that are no power of two.
EXPORTED = dataclasses.replace(
    MODEL,
    backbone=schema.BackboneConfig(width=24, layers=3, heads=2, hidden=66, context=5),
    depformer=schema.DepformerConfig(width=16, layers=2, heads=4, hidden=44),
    siglip=schema.SiglipConfig(width=20, layers=2, heads=5, hidden=28, patch=4, image_size=12),
    cross_attention=schema.CrossAttentionConfig(gate=gates.Conditional(hidden=3)),
    text_vocab=37,
    audio_vocab=13,
    delays=(0, 0, 1, 1, 0, 1),
)
# The same with the 17 codebooks of the released models.
EXPORTED_17 = dataclasses.replace(
    EXPORTED,
    codebooks_out=schema.ModelConfig().codebooks_out,
    delays=schema.ModelConfig().delays,
)
# Widths that fill the groups of every quantization.
QUANTIZABLE = dataclasses.replace(
    MODEL,
    backbone=schema.BackboneConfig(width=512, layers=2, heads=4, hidden=128, context=40),
    depformer=schema.DepformerConfig(width=64, layers=2, heads=2, hidden=192),
    siglip=schema.SiglipConfig(width=64, layers=2, heads=2, hidden=28, patch=4, image_size=12),
    cross_attention=schema.CrossAttentionConfig(gate=gates.Conditional(hidden=64)),
    text_vocab=37,
    audio_vocab=13,
    delays=(0, 0, 1, 1, 0, 1),
)
# Widths that 8 divides along fsdp, and 4 along tensor.
DIVISIBLE = dataclasses.replace(
    MODEL,
    backbone=schema.BackboneConfig(width=32, layers=2, heads=4, hidden=40, context=5),
    depformer=schema.DepformerConfig(width=16, layers=1, heads=4, hidden=64),
    siglip=schema.SiglipConfig(width=24, layers=1, heads=4, hidden=80, patch=4, image_size=8),
    cross_attention=schema.CrossAttentionConfig(gate=gates.Conditional(hidden=16)),
    text_vocab=48,
    audio_vocab=56,
)
GATES = {
    "none": None,
    "tanh": gates.Constant("tanh"),
    "sigmoid": gates.Constant("sigmoid"),
    "conditional_tanh": gates.Conditional(hidden=7, activation="tanh"),
    "conditional_sigmoid": gates.Conditional(hidden=7, activation="sigmoid"),
}
B, T = 2, 9
STEPS = 12  # of a run
DATA = schema.DataConfig(speech_rows=4, speechless_rows=8, speech_frames=T, speechless_tokens=7)


def seen(u) -> gates.Seen:
    """What gates that look at u alone are given."""
    return gates.Seen(u, u, u[..., None], None)


def with_cross_attention(**fields) -> schema.ModelConfig:
    """MODEL with another kind of cross-attention."""
    xa = dataclasses.replace(MODEL.cross_attention, **fields)
    return dataclasses.replace(MODEL, cross_attention=xa)


@functools.cache
def params(config: schema.ModelConfig = MODEL, seed: int = 0):
    """Initial parameters plus noise, so that no scale is 1 and no gate is closed."""
    model = model_lib.VisionSpeech(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    leaves, structure = jax.tree.flatten(shapes)
    random = np.random.default_rng(seed)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    filled = []
    for path, leaf in zip(paths, leaves, strict=True):
        noise = random.standard_normal(leaf.shape).astype(np.float32) * 0.2  # about 1/sqrt(D)
        with jax.ensure_compile_time_eval():  # the first caller may be inside a jit
            filled.append(jnp.asarray(noise + 1.0 if "scale" in path or "alpha" in path else noise))
    return jax.tree.unflatten(structure, filled)


def codes(seed: int = 1, batch: int = B, frames: int = T, config=MODEL) -> np.ndarray:
    """Random undelayed ids int32 [batch, K, frames], all present."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, config.audio_vocab, (batch, config.codebooks, frames))
    ids[:, 0] = random.integers(0, config.text_vocab, (batch, frames))
    return ids.astype(np.int32)


def pixels(seed: int = 2, batch: int = B, config=MODEL) -> np.ndarray:
    """Random images in [-1, 1]."""
    side = config.siglip.image_size
    random = np.random.default_rng(seed)
    return random.uniform(-1, 1, (batch, side, side, 3)).astype(np.float32)


def apply(method, *args, config=MODEL, weights=None, **kwargs):
    """Runs one method of the model under jit; what was compiled once is not compiled again."""
    weights = params(config) if weights is None else weights
    return _jitted(method, config, tuple(kwargs.items()))(weights, args)


@functools.cache
def _jitted(method: str, config: schema.ModelConfig, kwargs: tuple):
    model = model_lib.VisionSpeech(config)
    return jax.jit(lambda p, a: model.apply({"params": p}, *a, method=method, **dict(kwargs)))


def quantizable_params(config=QUANTIZABLE, *, seed=0, dtype=np.float32):
    """Random weights of the tensors in upstream's files, which keep activations near 1."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, shape in rules.leaf_shapes(kyutai.vis_rules(config), kyutai.sizes(config)).items():
        center = 1.0 if path.endswith(("scale", "gate_alpha")) else 0.0
        size = 0.2 if "norm" in path else 0.8 * config.backbone.width**-0.5
        flat[path] = (center + size * rng.standard_normal(shape)).astype(dtype)
    return tree.unflatten(flat)


def planned(
    model: schema.ModelConfig = MODEL,
    *,
    mesh: tuple[int, int, int] = (-1, 1, 1),
    optim: schema.OptimConfig = schema.OptimConfig(),
    **train,
) -> schema.Config:
    """A run whose files are never read, to be counted, traced or compiled; `train`: fields of TrainConfig."""
    return schema.Config(
        schema.FrozenFiles("", "", "", ""),
        model=model,
        data=DATA,
        optim=optim,
        mesh=schema.MeshConfig(*mesh),
        train=schema.TrainConfig(**{"steps": 2000, **train}),
    )


class Data:
    """Random batches, each a pure function of its step; of several processes, one's share of the rows."""

    def __init__(
        self,
        data: schema.DataConfig,
        *,
        seconds: float = 0.0,
        part: tuple[int, int] = (0, 1),
        notes: Path | None = None,
    ) -> None:
        self._data, self._seconds, self._part, self._notes = data, seconds, part, notes

    def __getitem__(self, step: int) -> types.Batch:
        time.sleep(self._seconds)
        if self._notes is not None:
            with self._notes.open("a") as file:
                file.write(json.dumps({"step": step, **self.ids(step)}) + "\n")
        rng = np.random.default_rng(step)
        d = self._data
        whole = types.Batch(
            speech=part(rng, d.speech_rows, d.speech_frames, spoken=True),
            speechless=part(rng, d.speechless_rows, d.speechless_tokens, spoken=False),
        )
        return jax.tree.map(lambda rows: rows[self._share(len(rows))], whole)

    def ids(self, step: int) -> dict[str, list[str]]:
        """Names every row after its step."""
        rows = {"speech": self._data.speech_rows, "speechless": self._data.speechless_rows}
        return {
            name: [f"{name}-{step}-{i}" for i in range(n)[self._share(n)]]
            for name, n in rows.items()
        }

    def _share(self, rows: int) -> slice:
        index, count = self._part
        return slice(rows * index // count, rows * (index + 1) // count)


def part(
    rng: np.random.Generator, rows: int, frames: int, *, spoken: bool, model=MODEL
) -> types.Part:
    """Random rows, of which every third sees no image and the last frames of the first are absent."""
    codes = rng.integers(0, model.audio_vocab, (rows, model.codebooks, frames)).astype(np.int32)
    if not spoken:
        codes[:, 1:] = -1
    codes[:1, :, -2:] = -1
    side = model.siglip.image_size
    return types.Part(
        codes=codes,
        loss_mask=rng.random((rows, frames)) < 0.8,
        images=rng.integers(0, 256, (rows, side, side, 3)).astype(np.uint8),
        has_image=np.arange(rows) % 3 != 2,
    )


def write_frozen(folder: Path, *, seed: int = 5) -> schema.FrozenFiles:
    """Writes random frozen weights in the upstream layouts; there is no codec and no tokenizer."""
    files = schema.FrozenFiles(
        moshi=str(folder / "moshi.safetensors"),
        siglip=str(folder / "siglip.npz"),
        codec="",
        tokenizer="",
    )
    if not Path(files.siglip).exists():
        model = model_lib.VisionSpeech(MODEL)
        shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
        rng = np.random.default_rng(seed)
        params = jax.tree.map(
            lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32) * 0.2, shapes
        )
        kyutai.save_moshi(Path(files.moshi), params, MODEL)
        big_vision.save_siglip(Path(files.siglip), params["image"]["encoder"])
    return files


def stored(config: schema.Config) -> dict[str, np.ndarray]:
    """The values that the frozen files of a run hold, by path."""
    tensors = frozen_files.open_weights(config.frozen, config.model)
    return {path: np.asarray(tensor[()]) for path, tensor in tensors.items()}


def make_config(folder: Path, *, mesh: schema.MeshConfig | None = None) -> schema.Config:
    """The toy config, with its frozen files below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return schema.Config(
        frozen=write_frozen(folder),
        model=MODEL,
        data=DATA,
        optim=schema.OptimConfig(learning_rate=1e-2, warmup_steps=2),
        mesh=mesh or schema.MeshConfig(),
        train=schema.TrainConfig(
            steps=STEPS, log_every=2, checkpoint_every=4, keep_checkpoints=2, remat="none"
        ),
    )


def with_train(config: schema.Config, **fields) -> schema.Config:
    """The config with other fields of `train`."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **fields))


def with_data(config: schema.Config, **fields) -> schema.Config:
    """The config with other fields of `data`."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **fields))


@contextlib.contextmanager
def compilation_cache(folder: Path) -> Iterator[None]:
    """Keeps the programs that are compiled inside in a folder, and no others.

    JAX opens its cache once and keeps it whatever its settings become, so it is closed at both ends.
    """
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
    }
    earlier = {name: getattr(jax.config, name) for name in settings}
    cache.reset_cache()
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in earlier.items():
            jax.config.update(name, value)
        cache.reset_cache()


def main() -> None:
    """Trains, in one process or as one of several, and notes whose rows it took in `ids-PROCESS.txt`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0, help="that a batch takes")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--mesh", type=int, nargs="+", default=(-1, 1, 1))
    parser.add_argument("--every", type=int, default=4, help="steps between checkpoints")
    parser.add_argument("--out", help="the run folder; one of a store, too")
    args = parser.parse_args()
    from mvjax import files
    from mvjax.train import distributed, fit, run_store, sharding

    with distributed.session():
        mesh = schema.MeshConfig(*args.mesh)
        config = make_config(args.folder / "frozen", mesh=mesh)
        config = with_train(
            config,
            steps=args.steps,
            log_every=1,
            checkpoint_every=args.every,
        )
        feed = distributed.BatchFeed(sharding.make_mesh(mesh))
        notes = args.folder / f"ids-{jax.process_index()}.txt"
        data = Data(config.data, seconds=args.seconds, part=(feed.index, feed.count), notes=notes)
        out = files.output(args.out or args.folder / "run")
        with run_store.opened(out):
            fit.fit(config, out, data=data)


if __name__ == "__main__":
    main()
