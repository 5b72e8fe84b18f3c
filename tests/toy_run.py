"""A toy run for the training tests; as a script (`toy_run.py FOLDER`) it trains, to be killed and rerun."""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import jax
import numpy as np

from mvjax import gates, types
from mvjax.config import schema
from mvjax.nn import model as model_lib
from mvjax.weights import big_vision, kyutai

# B=4 T=9 S=4 D=24 E=20 F=66 N=4 H=6 L=3 K=7 Q=3 V=34 C=22 G=14; depformer d=16 n=2 h=8 f=44 L=2.
# Even where a mesh axis of 2 divides it.
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
STEPS = 12


def planned(**train) -> schema.Config:
    """A run whose files are never read, to be counted or compiled."""
    data = schema.DataConfig(speech_rows=4, speechless_rows=8, speech_frames=9, speechless_tokens=7)
    return schema.Config(
        schema.FrozenFiles("", "", "", ""),
        model=MODEL,
        data=data,
        train=schema.TrainConfig(steps=2000, **train),
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


def part(rng: np.random.Generator, rows: int, frames: int, *, spoken: bool) -> types.Part:
    """Random rows, of which every third sees no image and the last frames of the first are absent."""
    codes = rng.integers(0, MODEL.audio_vocab, (rows, MODEL.codebooks, frames)).astype(np.int32)
    if not spoken:
        codes[:, 1:] = -1
    codes[:1, :, -2:] = -1
    side = MODEL.siglip.image_size
    return types.Part(
        codes=codes,
        loss_mask=rng.random((rows, frames)) < 0.8,
        images=rng.integers(0, 256, (rows, side, side, 3)).astype(np.uint8),
        has_image=np.arange(rows) % 3 != 2,
    )


def write_frozen(folder: Path) -> schema.FrozenFiles:
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
        rng = np.random.default_rng(5)
        params = jax.tree.map(
            lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32) * 0.2, shapes
        )
        kyutai.save_moshi(Path(files.moshi), params, MODEL)
        big_vision.save_siglip(Path(files.siglip), params["image"]["encoder"])
    return files


def make_config(folder: Path, *, mesh: schema.MeshConfig | None = None) -> schema.Config:
    """The toy config, with its frozen files below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    return schema.Config(
        frozen=write_frozen(folder),
        model=MODEL,
        data=schema.DataConfig(
            speech_rows=4, speechless_rows=8, speech_frames=9, speechless_tokens=7
        ),
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


def main() -> None:
    """Trains, in one process or as one of several, and notes whose rows it took in `ids-PROCESS.txt`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0, help="that a batch takes")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--mesh", type=int, nargs=3, default=(-1, 1, 1))
    parser.add_argument("--every", type=int, default=4, help="steps between checkpoints")
    args = parser.parse_args()
    from mvjax.train import distributed, fit, sharding

    with distributed.session():
        mesh = schema.MeshConfig(*args.mesh)
        config = make_config(args.folder / "frozen", mesh=mesh)
        config = with_train(
            config,
            steps=args.steps,
            log_every=1,
            checkpoint_every=args.every,
            watchdog_seconds=20.0,
        )
        feed = distributed.Feed(sharding.make_mesh(mesh))
        notes = args.folder / f"ids-{jax.process_index()}.txt"
        data = Data(config.data, seconds=args.seconds, part=(feed.index, feed.count), notes=notes)
        fit.fit(config, args.folder / "run", data=data)


if __name__ == "__main__":
    main()
