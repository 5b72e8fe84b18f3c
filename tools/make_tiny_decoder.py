"""Trains the tiny Mimi's decoder further; all codes, records and the tiny Moshi stay as they are.

    python tools/make_tiny_decoder.py                 # 20 minutes of one core; needs `make .venv/.dev`

`make_tiny_mimi.py` gives encoder, quantizers and decoder one budget, and its decoder has not made of the
codes what is in them. Here only what makes sound of codes is trained, on the codes of whole utterances, most
of them the assistant's; without the encoder a step costs a third. The loss is the same. Sentences that
`voice_check.held_out` keeps for tests are never heard.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import make_tiny_mimi  # first: it tells PyTorch's `moshi` not to compile
import numpy as np
import torch
from moshi.models.compression import MimiModel
from safetensors.torch import load_file

from mvjax import types
from mvjax.data.records import index
from mvjax.dialogues import speech
from mvjax.digits import frozen_models, voice_check, voices

ASSET = "mvjax/digits/assets/mimi.safetensors"
ASSISTANTS = 0.7  # share of the utterances
ROWS, FRAMES = 8, 14  # crops a step
SKIPPED = 3  # frames at the start of a crop that are not scored: they lack what came before


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codec", default=ASSET, help="what `make_tiny_mimi.py` wrote")
    parser.add_argument("--out", default=ASSET)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--utterances", type=int, default=2000)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # silence would otherwise run ten times slower
    model = make_tiny_mimi.build(frozen_models.CODEC)
    model.load_state_dict(load_file(args.codec))
    model.eval()
    clips = utterances(args.utterances, np.random.default_rng(args.seed))
    codes = encode(model, clips)
    encodes_as = index.identity(dataclasses.replace(frozen_models.FROZEN, codec=args.codec)).codec
    train(model, clips, codes, args)
    make_tiny_mimi.write(model, args.out, {index.ENCODES_AS: encodes_as})


def utterances(count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Sentences in whole frames, with silence around them, at any place on the frame grid."""
    clips: list[np.ndarray] = []
    while len(clips) < count:
        text = make_tiny_mimi.sentence(rng)
        if voice_check.held_out(text):
            continue
        user = voices.TRAIN_USERS[rng.integers(len(voices.TRAIN_USERS))]
        said = speech.speak(text, voices.ASSISTANT if rng.random() < ASSISTANTS else user)
        around = int(rng.integers(3 * types.FRAME_SAMPLES)), 4 * types.FRAME_SAMPLES
        clip = np.pad(said.samples * np.float32(10 ** (rng.uniform(-3, 1) / 20)), around)
        clips.append(clip[: len(clip) // types.FRAME_SAMPLES * types.FRAME_SAMPLES])
    return clips


def encode(model: MimiModel, clips: list[np.ndarray]) -> list[torch.Tensor]:
    """Codes [Q, T] of each clip."""
    with torch.no_grad():
        return [model.encode(torch.from_numpy(clip)[None, None])[0] for clip in clips]


def decode(model: MimiModel, codes: torch.Tensor) -> torch.Tensor:
    """Samples [B, T] of codes, through which gradients flow."""
    latent = model._to_encoder_framerate(model.quantizer.decode(codes))
    assert model.decoder_transformer is not None
    (out,) = model.decoder_transformer(latent)
    return model.decoder(out)[:, 0]


def train(model: MimiModel, clips, codes, args: argparse.Namespace) -> None:
    """Trains `args.steps` steps, printing the mean loss of every hundred, and saving as often."""
    rng = np.random.default_rng(args.seed + 1)
    distance = make_tiny_mimi.MelDistance()
    model.requires_grad_(False)
    trained = [p for name, p in model.named_parameters() if name.startswith(make_tiny_mimi.DECODES)]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(0.8, 0.99), weight_decay=1e-3)
    tally, begun = [], time.process_time()
    for step in range(args.steps):
        scale = 0.03 + 0.97 * 0.5 * (1 + np.cos(np.pi * step / args.steps))
        optimizer.param_groups[0]["lr"] = args.learning_rate * scale * min(1.0, (step + 1) / 50)
        audio, ids = crops(clips, codes, rng)
        rebuilt = decode(model, ids)[:, SKIPPED * types.FRAME_SAMPLES :]
        wanted = audio[:, SKIPPED * types.FRAME_SAMPLES :]
        mel = distance(rebuilt, wanted)
        optimizer.zero_grad()
        (mel + (rebuilt - wanted).abs().mean()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        tally.append(mel.item())
        if (step + 1) % 100 == 0:
            minutes = (time.process_time() - begun) / 60
            print(
                f"step {step + 1}: mel {np.mean(tally):.4f}, {minutes:.1f} CPU minutes", flush=True
            )
            tally = []
            make_tiny_mimi.write(model, str(Path(args.out).with_suffix(".unfinished")))
    Path(args.out).with_suffix(".unfinished").unlink(missing_ok=True)


def crops(clips, codes, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio [ROWS, samples] and its codes [ROWS, Q, FRAMES]."""
    audio, ids = [], []
    while len(audio) < ROWS:
        n = int(rng.integers(len(clips)))
        T = codes[n].shape[1]
        if T < FRAMES:
            continue
        first = int(rng.integers(T - FRAMES + 1))
        samples = slice(first * types.FRAME_SAMPLES, (first + FRAMES) * types.FRAME_SAMPLES)
        audio.append(clips[n][samples])
        ids.append(codes[n][:, first : first + FRAMES])
    return torch.from_numpy(np.stack(audio)), torch.stack(ids)


if __name__ == "__main__":
    main()
