"""A model with the digits' tokenizer and a codec, all at toy size, and a benchmark; a script asks it."""

import contextlib
import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np
import sentencepiece
import toy

from mvjax import files, types
from mvjax.codec import flax_codec, mimi
from mvjax.config import schema
from mvjax.data.records import record
from mvjax.digits import frozen_models
from mvjax.eval import benchmarks, journal, runner
from mvjax.eval import model as eval_model
from mvjax.train import distributed, sharding

Q = 3
MODEL = dataclasses.replace(
    frozen_models.MODEL,
    backbone=schema.BackboneConfig(width=24, layers=3, heads=2, hidden=20, context=120),
    depformer=schema.DepformerConfig(width=12, layers=1, heads=2, hidden=14),
    siglip=schema.SiglipConfig(width=8, layers=1, heads=2, hidden=10, patch=8, image_size=48),
    codebooks_out=Q,
    delays=(0, *(0, 1, 1) * 2),
)
CODEC = dataclasses.replace(
    frozen_models.CODEC,
    filters=2,
    latent=12,
    layers=1,
    heads=2,
    hidden=16,
    code_width=4,
    codebooks=Q,
    stored_codebooks=Q,
)
FRAME = types.FRAME_SAMPLES
CONFIG = schema.Config(frozen=frozen_models.FROZEN, model=MODEL, codec=CODEC)


@functools.cache
def loaded() -> eval_model.LoadedModel:
    """Random weights."""
    params = toy.params(MODEL)
    audio = jax.random.normal(jax.random.key(2), (1, FRAME))
    codec = jax.jit(mimi.Mimi(CODEC).init)(jax.random.key(1), audio)["params"]
    return eval_model.LoadedModel(CONFIG, params, flax_codec.FlaxCodec(codec, CODEC), tokenizer())


def tokenizer() -> sentencepiece.SentencePieceProcessor:
    """The digits' own."""
    path = files.resolve(frozen_models.FROZEN.tokenizer)
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def on_mesh(**sizes: int) -> eval_model.LoadedModel:
    """The same, sharded over the devices of a mesh."""
    model = loaded()
    mesh = sharding.make_mesh(schema.MeshConfig(**sizes))
    params = jax.device_put(model.params, sharding.shardings(model.params, mesh))
    return dataclasses.replace(model, params=params, mesh=mesh)


QUESTIONS = (
    "what digit is this", "where is it", "is it red", "what do you see", "is it a two",
    "tell me everything you see", "what colour is the digit", "name the number please",
    "why is the digit a seven and where do you see it and which colour does it have",
)  # fmt: skip


class Noise(benchmarks.Benchmark):
    """Random images and sounds; what a random model says is scored by its number of words."""

    name = "noise"
    modes = benchmarks.MODES
    protocol = benchmarks.PromptProtocol(lead_in=0.16, tail=1.0, max_tokens=8)

    def __init__(self, root=None):
        super().__init__(root)
        self.loaded = []  # which images were

    def samples(self, limit, seed):
        """One for each question."""
        return [self.sample(i, seed) for i in benchmarks.drawn(len(QUESTIONS), limit, seed)]

    def sample(self, i, seed):
        """The i-th."""

        def image():
            self.loaded.append(i)
            return _rng(seed, i).integers(0, 256, (60, 48, 3)).astype(np.uint8)

        def speech():
            return 0.3 * _rng(seed, i).standard_normal((5 + i) * FRAME).astype(np.float32)

        kind = ("short", "long")[i % 2]
        return benchmarks.Sample(f"q{i}", kind, QUESTIONS[i], image=image, shows=i, speech=speech)

    def score(self, sample, said):
        """A tenth a word."""
        return min(len(said.split()), 10) / 10


def exchange(topic: benchmarks.Topic, *, spoken: bool = False) -> benchmarks.Exchange:
    """A question and its answer before the scored one; `spoken`: the answer is given as speech, too."""
    words = (record.Word("a", 0.1, 0.2), record.Word("seven", 0.3, 0.6))
    answer = benchmarks.SpokenAnswer(np.ones(9 * FRAME, np.float32), words)
    return benchmarks.Exchange(
        topic,
        "what digit is this",
        "a seven",
        speech=lambda: np.ones(3 * FRAME - 7, np.float32),
        answer_speech=(lambda: answer) if spoken else None,
    )


def _rng(seed: int, i: int) -> np.random.Generator:
    return np.random.default_rng([seed, i])


def main() -> None:
    """Evaluates, in one process or as one of several, to be killed and rerun: FOLDER, modes."""
    folder, modes = Path(sys.argv[1]), sys.argv[2:]
    with distributed.session(), contextlib.ExitStack() as stack:
        model, noise, log = on_mesh(data=-1), Noise(), None
        if distributed.is_first():
            path = folder / "noise.samples.jsonl"
            log = stack.enter_context(journal.Journal(path, {"about": "test"}))
        found = runner.evaluate(model, noise, noise.samples(None, 3), modes, batch_size=2, log=log)
        if distributed.is_first():
            result = [found.table, found.intervals, found.gates]
            (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
