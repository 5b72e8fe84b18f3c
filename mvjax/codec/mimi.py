"""Mimi, the neural audio codec: 24 kHz audio <-> codes at 12.5 frames a second, whole or streamed.

    codes = mimi.run("encode", params, audio, config=config)     # [B, samples] -> [B, Q, T]
    audio = mimi.run("decode", params, codes, config=config)     # [B, Q, T] -> [B, T * 1920]

    state = mimi.start(config, batch=B)                          # one or more frames at a time
    state, codes = mimi.run("encode_step", params, state, audio, config=config)
    state, audio = mimi.run("decode_step", params, state, codes, config=config)

A whole signal is a stream that starts from nothing, so both give the same numbers. Everything is float32
with full-precision matmuls, because a rounded latent picks another code. Reference section 6.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from mvjax.codec import conv, quantizer, seanet, transformer
from mvjax.config import frozen

Params = Mapping[str, Any]

# Bytes of the widest activation that the convolutions keep at once on a CPU. Longer signals go through them
# chunk by chunk: with all of a minute at once, memory traffic makes them ten times slower.
_CPU_CHUNK_BYTES = 4_000_000


class HalfState(NamedTuple):
    """What encoding needs to know of the audio before, or decoding of the codes."""

    position: Int[Array, ""]  # transformer steps so far
    convs: seanet.ConvState
    kv_cache: transformer.MimiKVCache
    resample: Float[Array, "B past latent"]  # context of the convolution between 25 Hz and frames


class MimiState(NamedTuple):
    """Both directions of one stream; they are independent."""

    encoder: HalfState
    decoder: HalfState


class Mimi(nn.Module):
    """The codec's modules; all methods work with `apply(..., method=...)`."""

    config: frozen.MimiConfig

    def setup(self) -> None:
        """Creates the two halves around the quantizer."""
        c, steps = self.config, frozen.MIMI_STEPS
        self.encoder = seanet.SeanetEncoder(c)
        self.encoder_transformer = transformer.MimiTransformer(c)
        self.downsample = conv.StridedConv(c.latent, c.latent, steps, use_bias=False)
        self.quantizer = quantizer.Quantizer(c)
        self.upsample = conv.ChannelwiseUpsample(c.latent, steps)
        self.decoder_transformer = transformer.MimiTransformer(c)
        self.decoder = seanet.SeanetDecoder(c)

    def __call__(self, audio: Float[Array, "B samples"]) -> Float[Array, "B padded"]:
        """Encodes and decodes; creates every parameter under `init`."""
        return self.decode(self.encode(audio))

    def encode(self, audio: Float[Array, "B samples"]) -> Int[Array, "B Q T"]:
        """Returns the codes of audio that is zero-filled on the right to whole frames."""
        return self.quantize(self.latents(audio))

    def decode(self, codes: Int[Array, "B Q T"]) -> Float[Array, "B samples"]:
        """Returns the audio of codes; a row with a code out of range has NaN there and around it."""
        return self.synthesize(self.dequantize(codes))

    def latents(self, audio: Float[Array, "B samples"]) -> Float[Array, "B T latent"]:
        """Returns the latents of audio before quantization, one per frame; see `encode`."""
        B, samples = audio.shape
        frame = self.config.frame_samples
        frames = -(-samples // frame)
        # Frames are independent of later ones, so more zeros make chunks even and change nothing.
        chunk = self._chunk(B, frames)
        padded = -(-frames // chunk) * chunk * frame
        audio = jnp.pad(audio, ((0, 0), (0, padded - samples)))
        # or XLA pads with the zeros of the start element by element, between computing, not in vectors
        state = jax.lax.optimization_barrier(self.start(B).encoder)
        _, latents = self.latents_step(state, audio)
        return latents[:, :frames]

    def synthesize(self, latents: Float[Array, "B T latent"]) -> Float[Array, "B samples"]:
        """Returns the audio of latents."""
        B, T, _ = latents.shape
        chunk = self._chunk(B, T)
        padded = jnp.pad(latents, ((0, 0), (0, -T % chunk), (0, 0)))
        _, audio = self.synthesize_step(self.start(B).decoder, padded)
        return audio[:, : T * self.config.frame_samples]

    def quantize(self, latents: Float[Array, "B T latent"]) -> Int[Array, "B Q T"]:
        """Returns the nearest codes."""
        with jax.default_matmul_precision("highest"):
            return self.quantizer.encode(latents)

    def dequantize(self, codes: Int[Array, "B Q T"]) -> Float[Array, "B T latent"]:
        """Returns the latents that the codes stand for."""
        with jax.default_matmul_precision("highest"):
            return self.quantizer.decode(codes)

    def encode_step(
        self, state: MimiState, audio: Float[Array, "B samples"]
    ) -> tuple[MimiState, Int[Array, "B Q T"]]:
        """Encodes the next frames of a stream.

        Raises:
          ValueError: unless the samples make one or more whole frames.
        """
        encoder, latents = self.latents_step(state.encoder, audio)
        return state._replace(encoder=encoder), self.quantize(latents)

    def decode_step(
        self, state: MimiState, codes: Int[Array, "B Q T"]
    ) -> tuple[MimiState, Float[Array, "B samples"]]:
        """Decodes the next frames of a stream."""
        decoder, audio = self.synthesize_step(state.decoder, self.dequantize(codes))
        return state._replace(decoder=decoder), audio

    def latents_step(
        self, state: HalfState, audio: Float[Array, "B samples"]
    ) -> tuple[HalfState, Float[Array, "B T latent"]]:
        """Returns the latents of the next frames; see `encode_step`."""
        frame, samples = self.config.frame_samples, audio.shape[1]
        if samples == 0 or samples % frame:
            raise ValueError(
                f"encode: expected whole frames of {frame} samples, got {samples} samples; "
                "collect or zero-fill the audio first"
            )
        x, convs = self.convolve(audio, state.convs)
        return self._downsampled(state._replace(convs=convs), x)

    def convolve(
        self, audio: Float[Array, "B samples"], state: seanet.ConvState
    ) -> tuple[Float[Array, "B steps latent"], seanet.ConvState]:
        """Returns what the encoder's convolutions make of whole frames, and their state after them."""
        with jax.default_matmul_precision("highest"):
            return self._chunked(self.encoder, audio[:, :, None], state)

    def encode_convolved(self, x: Float[Array, "B steps latent"]) -> Int[Array, "B Q T"]:
        """Returns the codes of whole signals that went through `convolve`."""
        return self.quantize(self._downsampled(self.start(x.shape[0]).encoder, x)[1])

    def _downsampled(
        self, state: HalfState, x: Float[Array, "B steps latent"]
    ) -> tuple[HalfState, Float[Array, "B T latent"]]:
        with jax.default_matmul_precision("highest"):
            x, kv_cache = self.encoder_transformer(x, state.kv_cache, state.position)
            # The stream begins as if its first step had been there before (upstream's replicate padding).
            past = jnp.where(state.position == 0, x[:, :1], state.resample)
            latents, downsample = self.downsample(x, past)
        return HalfState(state.position + x.shape[1], state.convs, kv_cache, downsample), latents

    def synthesize_step(
        self, state: HalfState, latents: Float[Array, "B T latent"]
    ) -> tuple[HalfState, Float[Array, "B samples"]]:
        """Returns the audio of the next frames' latents."""
        with jax.default_matmul_precision("highest"):
            x, upsample = self.upsample(latents, state.resample)
            x, kv_cache = self.decoder_transformer(x, state.kv_cache, state.position)
            audio, convs = self._chunked(self.decoder, x, state.convs)
        return HalfState(state.position + x.shape[1], convs, kv_cache, upsample), audio[:, :, 0]

    def start(self, batch: int) -> MimiState:
        """The state before the first frame."""
        zero = jnp.int32(0)
        convs, kv_cache = self.encoder.start(batch), self.encoder_transformer.start(batch)
        encoder = HalfState(zero, convs, kv_cache, self.downsample.start(batch))
        convs, kv_cache = self.decoder.start(batch), self.decoder_transformer.start(batch)
        return MimiState(encoder, HalfState(zero, convs, kv_cache, self.upsample.start(batch)))

    def _chunk(self, batch: int, frames: int) -> int:
        """Frames that go through the convolutions at once."""
        if jax.default_backend() != "cpu":
            return max(1, frames)
        return max(1, min(frames, cpu_frames(self.config) // batch))

    def _chunked(
        self, module: seanet.SeanetEncoder | seanet.SeanetDecoder, x: Array, state: seanet.ConvState
    ) -> tuple[Array, seanet.ConvState]:
        """Runs a convolutional end over x [B, time, width] in even chunks, if they come out even."""
        B, time, width = x.shape
        frame = self.config.frame_samples if width == 1 else frozen.MIMI_STEPS
        frames = time // frame
        n = frames // self._chunk(B, frames)
        if n <= 1 or frames % n:
            return module(x, state)
        chunks = x.reshape(B, n, time // n, width)

        def body(
            module: nn.Module, state: seanet.ConvState, x: Array
        ) -> tuple[seanet.ConvState, Array]:
            y, state = module(x, state)
            return state, y

        scan = nn.scan(
            body, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1
        )
        state, y = scan(module, state, chunks)
        return y.reshape(B, -1, y.shape[-1]), state


def cpu_frames(config: frozen.MimiConfig) -> int:
    """Frames that go through the convolutions at once on a CPU, those of all rows."""
    return max(1, _CPU_CHUNK_BYTES // (config.frame_samples * config.filters * 4))


def start(config: frozen.MimiConfig, *, batch: int) -> MimiState:
    """Returns the state of `batch` streams before their first frame."""
    return Mimi(config).bind({}).start(batch)


@functools.partial(jax.jit, static_argnames=("method", "config"))
def run(method: str, params: Params, *inputs: Any, config: frozen.MimiConfig) -> Any:
    """Returns what a method of `Mimi` does, compiled once for each shape of its inputs."""
    return Mimi(config).apply({"params": params}, *inputs, method=method)
