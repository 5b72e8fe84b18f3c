"""Trains the digits world's tiny Mimi codec and writes it in the Kyutai file layout.

    python tools/make_tiny_mimi.py --out mvjax/digits/assets/mimi.safetensors

The network and its quantizers are PyTorch's `moshi` package at a small size (installed by `make test`);
the data is the digits world's talk, spoken by eSpeak NG. The waveform loss is a multi-resolution
log-mel distance (no discriminator: eSpeak's formant voices need none to stay intelligible). The first
codebook is made semantic the way Mimi's is, by distillation, but the teacher is the synthesizer:
its phoneme events, in four 20 ms slots a frame, are predicted from the first quantizer's output alone,
over all training voices, so that the code depends on what is said and not on who says it.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("NO_TORCH_COMPILE", "1")

import numpy as np
import torch
from moshi.models.compression import MimiModel
from moshi.modules import SEANetDecoder, SEANetEncoder, transformer
from moshi.quantization import SplitResidualVectorQuantizer
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from mvjax import types
from mvjax.config import schema
from mvjax.dialogues import speech
from mvjax.digits import frozen_models, talk, voices
from mvjax.train import memory

SLOTS = 4  # phoneme targets a frame
CROP_FRAMES = 14
ROWS = 8  # crops a step
# what makes sound: decoder.*, decoder_transformer.*, upsample.*
DECODES = ("decoder", "upsample")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--utterances", type=int, default=3000)
    parser.add_argument("--out", default="mvjax/digits/assets/mimi.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", help="continue from this file's weights")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    memory.keep_freed()
    torch.set_num_threads(1)  # a second saves a third of the time for a fifth more work
    torch.set_flush_denormal(True)  # silence would otherwise run ten times slower
    corpus = Corpus(args.utterances, args.seed)
    print(
        f"{len(corpus.audio)} utterances, {corpus.seconds / 60:.0f} minutes, {len(corpus.names)} phonemes"
    )
    model = build(frozen_models.CODEC)
    probe = nn.Linear(frozen_models.CODEC.latent, SLOTS * len(corpus.names))
    if args.resume:
        load(model, probe, args.resume)
    train(model, probe, corpus, steps=args.steps, out=args.out)


def build(config: schema.MimiConfig) -> MimiModel:
    """The `moshi` package's Mimi at the sizes of `config`."""
    seanet = dict(
        channels=1, dimension=config.latent, causal=True, n_filters=config.filters,
        n_residual_layers=1, activation="ELU", compress=2, dilation_base=2,
        disable_norm_outer_blocks=0, kernel_size=7, residual_kernel_size=3, last_kernel_size=3,
        norm="none", pad_mode="constant", ratios=list(config.ratios), true_skip=True,
    )  # fmt: skip
    blocks = dict(
        d_model=config.latent, num_heads=config.heads, num_layers=config.layers, causal=True,
        layer_scale=0.01, context=config.context, conv_layout=True, max_period=10000,
        gating="none", norm="layer_norm", positional_embedding="rope",
        dim_feedforward=config.hidden, input_dimension=config.latent,
        output_dimensions=[config.latent],
    )  # fmt: skip
    return MimiModel(
        SEANetEncoder(**seanet),
        SEANetDecoder(**seanet),
        SplitResidualVectorQuantizer(
            dimension=config.code_width,
            n_q=config.stored_codebooks,
            bins=config.codes,
            input_dimension=config.latent,
            output_dimension=config.latent,
        ),
        channels=1,
        sample_rate=types.SAMPLE_RATE,
        frame_rate=types.FRAME_RATE,
        encoder_frame_rate=2 * types.FRAME_RATE,
        causal=True,
        resample_method="conv",
        encoder_transformer=transformer.ProjectedTransformer(**blocks),
        decoder_transformer=transformer.ProjectedTransformer(**blocks),
    )


class Corpus:
    """Spoken sentences with their phonemes; `crops` draws training rows."""

    def __init__(self, utterances: int, seed: int):
        self.rng = np.random.default_rng(seed)
        self.audio, phonemes = [], []
        for i in range(utterances):
            user = voices.TRAIN_USERS[i // 2 % len(voices.TRAIN_USERS)]
            spoken = speech.speak(sentence(self.rng), voices.ASSISTANT if i % 2 else user)
            self.audio.append(spoken.samples)
            phonemes.append(spoken.phonemes)
        self.seconds = sum(map(len, self.audio)) / types.SAMPLE_RATE
        self.names = ["_", *sorted({phone(p.text) for row in phonemes for p in row} - {"_"})]
        index = {name: i for i, name in enumerate(self.names)}
        self.slots = [
            self._slots(a, row, index) for a, row in zip(self.audio, phonemes, strict=True)
        ]

    def _slots(self, audio, phonemes, index) -> np.ndarray:
        """Phoneme index at each millisecond of the utterance."""
        out = np.zeros(int(len(audio) / types.SAMPLE_RATE * 1000) + 1, np.int64)
        for span in phonemes:
            out[int(span.start * 1000) : int(span.end * 1000)] = index[phone(span.text)]
        return out

    def crops(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Audio [ROWS, 1, samples] and phoneme targets [ROWS, frames, SLOTS]."""
        samples = CROP_FRAMES * types.FRAME_SAMPLES
        audio = np.zeros((ROWS, 1, samples), np.float32)
        targets = np.zeros((ROWS, CROP_FRAMES, SLOTS), np.int64)
        at = (np.arange(CROP_FRAMES * SLOTS) + 0.5) * 80 / SLOTS  # milliseconds
        for row in range(ROWS):
            clip = np.zeros(samples, np.float32)
            times = np.zeros(samples * 1000 // types.SAMPLE_RATE, np.int64)
            cursor = int(self.rng.uniform(-1.5, 0.6) * types.SAMPLE_RATE)
            while cursor < samples:
                pick = self.rng.integers(len(self.audio))
                gain = np.float32(10 ** (self.rng.uniform(-6, 2) / 20))
                place(clip, self.audio[pick] * gain, cursor)
                place(times, self.slots[pick], cursor * 1000 // types.SAMPLE_RATE)
                cursor += len(self.audio[pick]) + int(
                    self.rng.uniform(0.05, 1.0) * types.SAMPLE_RATE
                )
            audio[row, 0] = clip
            targets[row] = times[at.astype(int)].reshape(CROP_FRAMES, SLOTS)
        return torch.from_numpy(audio), torch.from_numpy(targets)


def sentence(rng: np.random.Generator) -> str:
    """One utterance of the digits world, by either speaker, small talk a third of the time."""
    if rng.random() < 0.33:
        dialogue = talk.small_talk(rng)
    else:
        dialogue = talk.visual_dialogue(talk.random_facts(rng), rng)
    return dialogue.turns[rng.integers(len(dialogue.turns))].text


def phone(name: str) -> str:
    """A phoneme's name without stress and length marks; pauses are "_"."""
    name = name.strip("',%=:;")
    return "_" if not name or name.startswith("_") else name


def place(target: np.ndarray, piece: np.ndarray, start: int) -> None:
    """Writes `piece` into `target` from `start`, clipped to its bounds."""
    first = max(0, -start)
    room = len(target) - max(0, start)
    part = piece[first : first + max(0, room)]
    target[max(0, start) : max(0, start) + len(part)] = part


class MelDistance(nn.Module):
    """Mean L1 distance of log-mel spectra over several window lengths."""

    windows = ((128, 16), (256, 32), (512, 48), (1024, 80), (2048, 96))  # samples, mel bands

    def __init__(self):
        super().__init__()
        for size, bands in self.windows:
            self.register_buffer(f"hann{size}", torch.hann_window(size))
            self.register_buffer(f"mel{size}", mel_bank(size, bands))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Distance of two batches [B, samples]."""
        total = x.new_zeros(())
        for size, _ in self.windows:
            a, b = self._mel(x, size), self._mel(y, size)
            total = total + (torch.log(a + 3e-3) - torch.log(b + 3e-3)).abs().mean()
            total = total + 0.3 * (a - b).abs().mean()
        return total / len(self.windows)

    def _mel(self, x: torch.Tensor, size: int) -> torch.Tensor:
        spectrum = torch.stft(
            x, size, size // 4, window=getattr(self, f"hann{size}"), return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        magnitude = (power + 1e-9).sqrt() / (size / 4)
        return torch.einsum("mf,bft->bmt", getattr(self, f"mel{size}"), magnitude) * 10


def mel_bank(size: int, bands: int) -> torch.Tensor:
    """Triangular filters [bands, size / 2 + 1] on the mel scale, each summing to one."""
    hertz = torch.linspace(0, types.SAMPLE_RATE / 2, size // 2 + 1)
    top = 2595 * np.log10(1 + types.SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, float(top), bands + 2) / 2595) - 1)
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bank = torch.minimum((hertz - low) / (mid - low), (high - hertz) / (high - mid)).clamp(min=0)
    return bank / bank.sum(1, keepdim=True).clamp(min=1e-6)


def forward(model: MimiModel, audio: torch.Tensor):
    """(rebuilt audio, semantic latents [B, T, latent], commitment penalty)."""
    latent = model._encode_to_unquantized_latent(audio)
    semantic = model.quantizer.rvq_first(latent, types.FRAME_RATE)
    acoustic = model.quantizer.rvq_rest(latent, types.FRAME_RATE)
    (out,) = model.decoder_transformer(model._to_encoder_framerate(semantic.x + acoustic.x))
    penalty = semantic.penalty + acoustic.penalty
    return model.decoder(out)[..., : audio.shape[-1]], semantic.x.transpose(1, 2), penalty


def train(model: MimiModel, probe: nn.Linear, corpus: Corpus, *, steps: int, out: str) -> None:
    """Trains `steps` steps, printing and saving every hundred."""
    distance = MelDistance()
    params = [*model.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(0.8, 0.99), weight_decay=1e-3)
    begun, tally = time.time(), []
    model.train()
    for step in range(steps):
        scale = 0.03 + 0.97 * 0.5 * (1 + np.cos(np.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * scale * min(1.0, (step + 1) / 100)
        audio, targets = corpus.crops()
        rebuilt, semantic, penalty = forward(model, audio)
        mel = distance(rebuilt[:, 0], audio[:, 0])
        logits = probe(semantic).unflatten(-1, (SLOTS, -1))
        phonemes = functional.cross_entropy(logits.flatten(0, 2), targets.flatten())
        loss = mel + (rebuilt - audio).abs().mean() + 0.7 * phonemes + 0.25 * penalty
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        right = (logits.argmax(-1) == targets)[targets > 0].float().mean()
        tally.append([mel.item(), phonemes.item(), right.item(), penalty.item()])
        if (step + 1) % 100 == 0:
            mean = np.mean(tally, 0)
            print(
                f"step {step + 1}: mel {mean[0]:.3f} phoneme loss {mean[1]:.3f} right {mean[2]:.3f} "
                f"penalty {mean[3]:.3f}, {(time.time() - begun) / 60:.1f} minutes",
                flush=True,
            )
            tally = []
            save(model, probe, out)
    save(model, probe, out)


def save(model: MimiModel, probe: nn.Linear, out: str) -> None:
    """Writes the codec to `out`, and the phoneme probe (not shipped) beside it for `--resume`."""
    write(model, out)
    torch.save(probe.state_dict(), f"{out}.probe")


def write(model: MimiModel, out: str, metadata: dict[str, str] | None = None) -> None:
    """What makes sound of codes is stored in half precision, which nobody hears; what makes codes is not."""
    tensors = {
        name: (value.half() if name.startswith(DECODES) else value).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(tensors, out, metadata)


def load(model: MimiModel, probe: nn.Linear, path: str) -> None:
    from safetensors.torch import load_file

    model.load_state_dict(load_file(path))
    probe.load_state_dict(torch.load(f"{path}.probe", weights_only=True))


if __name__ == "__main__":
    main()
