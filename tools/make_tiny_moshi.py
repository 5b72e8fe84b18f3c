"""Trains the digits world's blind speech model and writes it in the Kyutai file layout.

    python tools/make_tiny_moshi.py --out mvjax/digits/assets/moshi.safetensors

The model hears and speaks (17 streams) and reads and writes (text alone), and never sees a picture:

    blind       questions about a picture nobody described: it learns the form of the answers, and to
                recognize what was asked (answers echo it), but can only guess the facts
    told        the user describes a picture first: it learns to answer from the description
    small talk  greetings, counting, and an echo game that trains speech recognition

An auxiliary head, which is not exported, predicts the user's words from the same hidden states 0.24 s
after they begin: without it speech recognition is learned late.

Speech comes from a bank of utterances (`speech_bank.py`); every batch draws new dialogues and lays them
out on the frame grid from the bank, so that no dialogue can be memorized. (The codec is causal and its
attention looks back one second, so this equals encoding the whole channel but for the first frames after
a short gap.)
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sentencepiece
import speech_bank

from mvjax import files, tree, types
from mvjax.config import schema
from mvjax.data import streams
from mvjax.data.records import dataset
from mvjax.digits import frozen_models
from mvjax.nn import alignment, compute
from mvjax.nn import model as model_lib
from mvjax.train import loss as loss_lib
from mvjax.train import memory, sharding
from mvjax.weights import kyutai

RECOGNITION_DELAY = 0.24  # seconds from the start of a user's word to its target
WEIGHT_NOISE = 0.04  # relative, in training
CODE_NOISE = 0.07  # share of the user's semantic codes that are random in training
SPEECH_FRAMES, SPEECHLESS_TOKENS = 144, 72
SPEECH_ROWS, SPEECHLESS_ROWS = 24, 8
WEIGHTS = (3.0, 0.5, 0.5, 0.5)  # of spoken text, audio, written text and the user's words
DEPTH_FRAMES = 24  # frames of a step that the depth transformer learns from
LOSS = schema.LossConfig(semantic_weight=10.0, text_padding_weight=0.25)
WEIGHT_DECAY = 0.1
LOGIT_DECAY = 5e-4  # of the mean square; small logits have small rounding errors between runtimes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--dialogues", type=int, default=25000, help="whose utterances are spoken")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="continue from this file's weights")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=Path("mvjax/digits/assets/moshi.safetensors"))
    args = parser.parse_args()
    memory.keep_freed()
    tokenizer = sentencepiece.SentencePieceProcessor(
        model_file=str(files.resolve(frozen_models.FROZEN.tokenizer))
    )
    bank = speech_bank.make(args.dialogues, args.seed, silence_frames=SPEECH_FRAMES)
    clips = [codes for group in bank.clips.values() for codes, _ in group]
    print(f"{len(clips)} clips, {sum(c.shape[1] for c in clips) / 750:.0f} minutes", flush=True)
    params = train(Batches(bank, tokenizer, args.seed), args)
    kyutai.save_moshi(args.out, params, frozen_models.MODEL, dtype=jnp.bfloat16)


class Batches:
    """Draws batches without end from the bank (speech) and from fresh talk (text)."""

    def __init__(self, bank: speech_bank.Bank, tokenizer, seed: int):
        self.bank, self.tokenizer = bank, tokenizer
        self.rng = np.random.default_rng(seed + 1)

    def draw(self) -> tuple[np.ndarray, ...]:
        """Returns one batch.

        Frames whose audio counts, the user's words [B, T], speech codes as heard and as they are
        [B, K, T], text codes [B, 1, T].
        """
        frames = np.sort(self.rng.permutation(SPEECH_FRAMES)[:DEPTH_FRAMES])
        rows, words = zip(*(self._speech() for _ in range(SPEECH_ROWS)), strict=True)
        codes = np.stack(rows)
        text_rows = np.stack([self._text() for _ in range(SPEECHLESS_ROWS)])
        return frames, np.stack(words), self._heard(codes), codes, text_rows

    def _speech(self) -> tuple[np.ndarray, np.ndarray]:
        """Freshly drawn dialogues one after the other until the row is full."""
        bank, rng = self.bank, self.rng
        user, assistant = bank.silence.copy(), bank.silence.copy()
        words: dict[str, list[dataset.Word]] = {"user": [], "assistant": []}
        frame = int(rng.integers(0, 8))
        while frame < SPEECH_FRAMES:
            talked = speech_bank.dialogue(rng)
            if not bank.holds(talked):
                continue
            for turn in talked.turns:
                clips = bank.clips[turn.speaker, turn.text]
                codes, spans = clips[rng.integers(len(clips))]
                first = max(0, frame - speech_bank.LEAD)
                room = min(codes.shape[1], max(0, SPEECH_FRAMES - first))
                user_spoke = turn.speaker == "user"
                side = user if user_spoke else assistant
                side[:, first : first + room] = codes[:, :room]
                shift = first * types.FRAME_SECONDS
                if user_spoke:
                    shift += RECOGNITION_DELAY
                words[turn.speaker] += [
                    dataset.Word(w.text, w.start + shift, w.end + shift) for w in spans
                ]
                frame = first + codes.shape[1] - speech_bank.TAIL
                frame += int(rng.integers(2, 4 if user_spoke else 8))
            frame += int(rng.integers(0, 12))
        text, heard = (
            streams.text_stream(words[who], SPEECH_FRAMES, self.tokenizer, pad=3, epad=0)
            for who in ("assistant", "user")
        )
        row = np.concatenate([text[None], assistant, user]).astype(np.int32)
        return row, heard

    def _heard(self, rows: np.ndarray) -> np.ndarray:
        """The backbone's input: semantic codes, with some errors for the user; random acoustic codes.

        The acoustic codes of the same words differ between renditions. A model that relies on them overfits
        to its training clips, so they are random here. Some of the user's semantic codes are random, too, as
        if the voice were new.
        """
        heard = rows.copy()
        user = heard[:, 1 + frozen_models.MODEL.codebooks_out]
        wrong = self.rng.random(user.shape) < CODE_NOISE
        user[wrong] = self.rng.integers(frozen_models.MODEL.audio_vocab, size=int(wrong.sum()))
        for start in (
            1,
            1 + frozen_models.MODEL.codebooks_out,
        ):  # the semantic stream of either side
            acoustic = heard[:, start + 1 : start + frozen_models.MODEL.codebooks_out]
            acoustic[:] = self.rng.integers(frozen_models.MODEL.audio_vocab, size=acoustic.shape)
        return heard

    def _text(self) -> np.ndarray:
        """Freshly drawn dialogues as text, one after the other until the row is full."""
        row: list[int] = []
        while len(row) < SPEECHLESS_TOKENS:
            for turn in speech_bank.dialogue(self.rng).turns:
                ids = [i for w in turn.text.split() for i in self.tokenizer.encode(w)]
                row += [1, *ids, 2] if turn.speaker == "user" else ids
        return np.asarray(row[:SPEECHLESS_TOKENS], np.int32)[None]


def train(batches: Batches, args: argparse.Namespace):
    """Trains `args.steps` steps; returns {"backbone", "depformer"}."""
    mesh = sharding.make_mesh(schema.MeshConfig())
    computed = compute.on(mesh, schema.TrainConfig(remat="none"), frozen_models.MODEL)
    model = model_lib.VisionSpeech(frozen_models.MODEL, computed)
    if args.resume:
        params = kyutai.load_moshi(args.resume, frozen_models.MODEL)
    else:
        params = model.init(jax.random.key(args.seed))["params"]
        params, _ = tree.partition(params, [r"(backbone|depformer)/(?!blocks/(gate|norm_xa)).*"])
    shape = (frozen_models.MODEL.backbone.width, frozen_models.MODEL.text_vocab)
    both = {"model": params, "word_head": jax.random.normal(jax.random.key(1), shape) * 0.05}
    state, step = make_step(model, both)
    begun, batch, tally = time.time(), batches.draw(), []
    for n in range(args.steps):
        cosine = 0.5 * (1 + np.cos(np.pi * n / args.steps))
        rate = args.learning_rate * min(1.0, (n + 1) / 100) * (0.02 + 0.98 * cosine)
        both, state, parts = step(both, state, np.float32(rate), n, *batch)
        batch = batches.draw()  # prefetch: the device is still computing
        tally.append(np.asarray(parts))
        if (n + 1) % 100 == 0:
            text, audio, plain, hears = np.mean(tally, 0)
            print(
                f"step {n + 1}: spoken text {text:.3f} audio {audio:.3f} written text {plain:.3f} "
                f"heard words {hears:.3f}, {(time.time() - begun) / 60:.1f} minutes",
                flush=True,
            )
            tally = []
            kyutai.save_moshi(
                args.out, jax.device_get(both["model"]), frozen_models.MODEL, dtype=jnp.bfloat16
            )
    return jax.device_get(both["model"])


def make_step(model: model_lib.VisionSpeech, both):
    """Returns the optimizer's state and step(both, state, rate, *batch) -> (both, state, losses).

    The gradient is taken at weights with noise, so that the model is robust to small weight errors, and
    runtimes that round differently agree more closely.
    """
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(0.9, 0.98),
        optax.add_decayed_weights(WEIGHT_DECAY, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
    )

    def noisy(params, seed):
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(seed, impl="unsafe_rbg"), len(leaves))
        return treedef.unflatten(
            x * (1 + WEIGHT_NOISE * jax.random.normal(key, x.shape))
            for x, key in zip(leaves, keys, strict=True)
        )

    @jax.jit
    def step(both, state, rate, seed, *batch):
        grad = jax.value_and_grad(objective, has_aux=True)
        (_, parts), grads = grad(noisy(both, seed), *batch, model=model)
        updates, state = tx.update(grads, state, both)
        return jax.tree.map(lambda p, u: p - rate * u, both, updates), state, parts

    return tx.init(both), step


def objective(both, frames, words, heard, speech_codes, text_codes, *, model):
    """Returns (loss, its parts: spoken text, audio, written text, the user's words)."""

    def apply(method, *inputs, **options):
        return model.apply({"params": both["model"]}, *inputs, **options, method=method)

    def text_loss(logits, targets):
        every = targets >= 0
        return loss_lib.text(logits, targets, every, model=frozen_models.MODEL, loss=LOSS).mean()

    delayed = alignment.delay_codes(speech_codes, frozen_models.MODEL)
    z, _ = apply("hidden", alignment.delay_codes(heard, frozen_models.MODEL)[:, :, :-1], None)
    forced = delayed[:, :9, 1:][:, :, frames]
    logits = apply("depth_logits", z[:, frames], forced[:, 0], jnp.moveaxis(forced[:, 1:-1], 1, 2))
    targets = jnp.where(
        forced[:, 1:] == frozen_models.MODEL.audio_vocab, types.ZERO_TOKEN, forced[:, 1:]
    )
    audio = loss_lib.audio(logits, targets, delays=(0,) * 8, loss=LOSS).mean()
    written = apply("__call__", text_codes, None, depth_codebooks=0).text_logits
    spoken = apply("text_logits", z)
    parts = jnp.stack(
        [
            text_loss(spoken, speech_codes[:, 0]),
            audio,
            text_loss(written, text_codes[:, 0]),
            text_loss(jnp.einsum("BTD,DV->BTV", z, both["word_head"]), words),
        ]
    )
    squares = sum(jnp.square(x).mean() for x in (logits, spoken, written))
    return parts @ jnp.array(WEIGHTS) + LOGIT_DECAY * squares, parts


if __name__ == "__main__":
    main()
