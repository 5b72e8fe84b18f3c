"""The whole model: image tower, backbone with gated cross-attention, depth transformer, delays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key

from mvjax import types
from mvjax.config import schema
from mvjax.nn import attention, backbone, depformer, layers, xattn
from mvjax.nn import compute as compute_lib

REPORTED_LAYERS = 10  # a frame's gate mean is over the last so many layers; reference section 2.8


class Output(NamedTuple):
    """What the training forward returns, aligned with the undelayed codes.

    Attributes:
      text_logits: at t they predict codes[:, 0, t].
      audio_logits: at [t, q] they predict codes[:, 1 + q, t]; zeros in the last `delay` frames.
      gates: mean over channels, of the layers that look; 0 where there is no image.
    """

    text_logits: Float[Array, "B T V"]
    audio_logits: Float[Array, "B T levels C"] | None
    gates: Float[Array, "looking B T"]


class Features(NamedTuple):
    """The training forward short of the text logits, aligned with the undelayed codes.

    Attributes:
      z: at t, through `head`, it predicts codes[:, 0, t].
      head: of the text.
      audio_logits: as in `Output`.
      gates: as in `Output`.
    """

    z: Float[Array, "B T D"]
    head: layers.Weight
    audio_logits: Float[Array, "B T levels C"] | None
    gates: Float[Array, "looking B T"]


class VisionSpeech(nn.Module):
    """Moshi that can look at an image; every method is used through `apply(..., method=name)`.

    Attributes:
      config: sizes.
      compute: how to compute.
    """

    config: schema.ModelConfig
    compute: compute_lib.Compute = compute_lib.PLAIN

    def setup(self) -> None:
        """Creates the parts."""
        m, xa = self.config, self.config.cross_attention
        self.backbone = backbone.Backbone(m, self.compute)
        self.depformer = depformer.Depformer(m, self.compute)
        self.image = xattn.ImageTower(m, self.compute)
        if xattn.shared_names(xa.share):
            self.xa = xattn.Projections(xattn.shared_names(xa.share), m)
        if xa.gate is not None and xa.share_gate:
            self.gate = layers.GateWeights(xa.gate, m.backbone.width)

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, method: Any = "build", **kwargs: Any) -> Any:
        """Returns {"params": every parameter}; `init(key)` needs no example input.

        A layer begins alike whether or not others look at the image: all are made, and some kept.
        """
        xa = dataclasses.replace(self.config.cross_attention, layers=())
        config = dataclasses.replace(self.config, cross_attention=xa)
        made = super(VisionSpeech, self.clone(config=config)).init(
            rngs, *args, method=method, **kwargs
        )
        spine = made["params"]["backbone"]
        spine = {**spine, "blocks": backbone.gathered(spine["blocks"], self.config)}
        return {**made, "params": {**made["params"], "backbone": spine}}

    def build(self) -> None:
        """Touches every parameter once."""
        m = self.config
        side = m.siglip.image_size
        pixels = jnp.zeros((1, side, side, 3), jnp.float32)
        codes = jnp.zeros((1, m.codebooks, 2), jnp.int32)
        self(codes, pixels, depth_codebooks=m.codebooks_out)

    def __call__(
        self,
        codes: Int[Array, "B rows T"],
        pixels: Float[Array, "B height width 3"] | Float[Array, "B S E"] | None,
        has_image: Bool[Array, "B"] | Bool[Array, "B T"] | None = None,
        *,
        depth_codebooks: int,
    ) -> Output:
        """The training forward: predicts every frame from the frames before it.

        Args:
          codes: undelayed; text in row 0 in [0, V), then audio in [0, C); -1 where absent. With the
            text row alone (rows = 1) the audio embeddings are not computed.
          pixels: in [-1, 1], or the frozen encoder's features; None is exactly plain Moshi.
          has_image: rows, or frames, that see their image; None: all.
          depth_codebooks: levels whose audio logits are computed; 0: none.
        """
        found = self.features(codes, pixels, has_image, depth_codebooks=depth_codebooks)
        return Output(self.text_logits(found.z), found.audio_logits, found.gates)

    def features(
        self,
        codes: Int[Array, "B rows T"],
        pixels: Float[Array, "B height width 3"] | Float[Array, "B S E"] | None,
        has_image: Bool[Array, "B"] | Bool[Array, "B T"] | None = None,
        *,
        depth_codebooks: int,
    ) -> Features:
        """The training forward without the text logits, which are V / D times as large as z."""
        kv = None if pixels is None else self.look(pixels)
        streams = delay_codes(codes, self.config)
        z, openings = self.hidden(streams[:, :, :-1], kv, has_image)
        gate_means = openings[jnp.array(self.config.looking)]
        delays = self.config.delays
        z_text = undelay(z[:, :, None], delays[:1])[:, :, 0]  # zeros have logits of zero
        head = self.backbone.head()
        if depth_codebooks == 0:
            return Features(z_text, head, None, gate_means)
        told = streams[:, : depth_codebooks + 1, 1:]
        audio_logits = self.depth_logits(z, told[:, 0], jnp.moveaxis(told[:, 1:-1], 1, 2))
        audio_logits = undelay(audio_logits, delays[1 : depth_codebooks + 1])
        return Features(z_text, head, audio_logits, gate_means)

    def look(
        self, images: Float[Array, "B height width 3"] | Float[Array, "B S E"]
    ) -> xattn.KeysValues:
        """Returns keys and values of images: pixels in [-1, 1], or the frozen encoder's features."""
        features = images if images.ndim == 3 else self.encode_images(images)
        return self.keys_values(self.project(features))

    def encode_images(self, pixels: Float[Array, "B height width 3"]) -> Float[Array, "B S E"]:
        """Returns the frozen encoder's features of images with values in [-1, 1]."""
        return self.image.encode(pixels)

    def project(self, features: Float[Array, "B S E"]) -> Float[Array, "B S dim"]:
        """Returns image tokens."""
        return self.compute.rows(self.image.project(self.compute.rows(features)))

    def keys_values(self, tokens: Float[Array, "B S dim"]) -> xattn.KeysValues:
        """Returns what the layers attend to, computed once per image."""
        if self.config.cross_attention.share == "none":
            return self.backbone.keys_values(tokens)
        return xattn.keys_values(self.xa(), tokens)

    def hidden(
        self,
        codes: Int[Array, "B rows T"],
        kv: xattn.KeysValues | None,
        has_image: Bool[Array, "B"] | Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "L B T"]]:
        """Returns (z, gate means) for delayed codes, as they enter; a layer that does not look has 0."""
        seen = self._seen(kv, has_image, codes, jnp.int32(0))
        z, gate_means, _ = self.backbone(codes, kv, self._shared(kv), has_image=seen)
        return z, gate_means

    def text_logits(self, z: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Returns float32 logits over the text vocabulary."""
        return self.backbone.text_logits(z)

    def depth_logits(
        self,
        z: Float[Array, "B T D"],
        text_ids: Int[Array, "B T"],
        audio_ids: Int[Array, "B T told"],
    ) -> Float[Array, "B T levels C"]:
        """Returns the logits of the first `told + 1` levels, teacher-forced with delayed ids."""
        B, T, D = z.shape
        ids = jnp.concatenate([text_ids[:, :, None], audio_ids], axis=-1)
        levels = ids.shape[-1]
        past = self.depformer.empty_past(B * T)
        logits, _ = self.depformer(z.reshape(B * T, D), ids.reshape(B * T, levels), past)
        return logits.reshape(B, T, levels, -1)

    def init_cache(
        self, batch: int, dtype: schema.Dtype | None = None, *, max_frames: int | None = None
    ) -> attention.Cache:
        """Returns an empty cache; `max_frames` makes it shorter than the window."""
        c = self.config.backbone
        slots = c.window if max_frames is None else max_frames
        return attention.init_cache(c, batch=batch, dtype=dtype or self.config.dtype, slots=slots)

    def step(
        self,
        cache: attention.Cache,
        codes: Int[Array, "B rows"],
        kv: xattn.KeysValues | None,
        has_image: Bool[Array, "B"] | None = None,
    ) -> tuple[attention.Cache, Float[Array, "B D"], Float[Array, "B V"], Float[Array, "B"]]:
        """Returns (cache, z, text logits, gate mean) of one frame of delayed ids.

        The gate mean is over channels and the last ten layers, those that do not look included.
        """
        column = codes[:, :, None]
        seen = self._seen(kv, has_image, column, cache.position)
        z, gate_means, further = self.backbone(
            column, kv, self._shared(kv), has_image=seen, cache=cache
        )
        assert further is not None
        reported = jnp.mean(gate_means[-REPORTED_LAYERS:, :, 0], axis=0)
        return further, z[:, 0], self.text_logits(z[:, 0]), reported

    def depth_generate(
        self,
        z: Float[Array, "B D"],
        text_ids: Int[Array, "B"],
        sample: depformer.Sample,
        key: Key[Array, ""],
        *,
        wanted: Int[Array, "B Q"] | None = None,
    ) -> tuple[Int[Array, "B Q"], Float[Array, "B Q C"]]:
        """Returns (codes, logits) of one frame; see `Depformer.generate`."""
        if wanted is None:
            shape = (z.shape[0], self.config.codebooks_out)
            wanted = jnp.full(shape, types.UNGENERATED, jnp.int32)
        return self.depformer.generate(z, text_ids, sample, key, wanted=wanted)

    def _seen(
        self,
        kv: xattn.KeysValues | None,
        has_image: Bool[Array, "B"] | Bool[Array, "B T"] | None,
        codes: Int[Array, "B rows T"],
        start: Int[Array, ""],
    ) -> Bool[Array, "B T"] | None:
        """Returns which frames see the image, given the codes of frames `start` and on."""
        if kv is None:
            return None
        B, _, T = codes.shape
        scope = self.config.cross_attention.scope
        seen = jnp.tile(scope(start + jnp.arange(T, dtype=jnp.int32))[None], (B, 1))
        if has_image is None:
            return seen
        return seen & (has_image if has_image.ndim == 2 else has_image[:, None])

    def _shared(self, kv: xattn.KeysValues | None) -> xattn.Shared | None:
        if kv is None:
            return None
        xa = self.config.cross_attention
        kernels = self.xa() if xattn.shared_names(xa.share) else {}
        return xattn.Shared(kernels, self.gate() if xa.gate is not None and xa.share_gate else None)


def initial_ids(config: schema.ModelConfig) -> Int[Array, "K"]:
    """The id that each stream starts with: V for text, C for audio."""
    return jnp.array([config.text_vocab] + [config.audio_vocab] * (config.codebooks - 1), jnp.int32)


def delay_codes(
    codes: Int[Array, "B rows T"], config: schema.ModelConfig
) -> Int[Array, "B rows columns"]:
    """Moves stream k right by delays[k] frames, after one initial column; columns = T + 1.

    Where a stream is absent throughout (all -1), its start is -1 too, so it adds nothing at all.
    Source: moshi/models/lm.py, `LMModel.forward`. Differs: the start of absent streams.
    """
    rows, T = codes.shape[1:]
    if rows not in (1, config.codebooks):
        raise ValueError(
            f"codes: expected 1 row (text) or {config.codebooks} (config.delays), got {rows}"
        )
    absent = jnp.all(codes == types.ZERO_TOKEN, axis=-1)
    start = jnp.where(absent, types.ZERO_TOKEN, initial_ids(config)[None, :rows])
    filled = [jnp.tile(start[:, k, None], (1, config.delays[k] + 1)) for k in range(rows)]
    moved = [jnp.concatenate([f, codes[:, k]], axis=-1)[:, : T + 1] for k, f in enumerate(filled)]
    return jnp.stack(moved, axis=1)


def undelay(
    logits: Float[Array, "B T levels C"], delays: Sequence[int]
) -> Float[Array, "B T levels C"]:
    """Moves level k left by delays[k] frames; zeros come in at the end."""
    T = logits.shape[1]
    moved = [
        jnp.pad(logits[:, min(delay, T) :, k], ((0, 0), (0, min(delay, T)), (0, 0)))
        for k, delay in enumerate(delays)
    ]
    return jnp.stack(moved, axis=2)
