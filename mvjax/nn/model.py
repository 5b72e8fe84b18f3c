"""The whole model: image tower, backbone with gated cross-attention, depth transformer.

image -> SigLIP -> project -> keys and values, once an image ------.
delayed ids -> embeddings -> backbone, where the image mask allows it -> z -> text logits
                                                                      z -> depth transformer -> audio logits

Here are whole sequences, as in training; `mvjax/runtimes/jax/frames.py` computes them frame by frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from mvjax.config import schema
from mvjax.nn import alignment, backbone, depformer, layers, packing, xattn
from mvjax.nn import compute as compute_lib

Images = Float[Array, "B height width 3"] | Float[Array, "B S E"]
HasImage = Bool[Array, "B"] | Bool[Array, "B T"]


class Output(NamedTuple):
    """What the training forward returns, aligned with the undelayed codes.

    Text logits at t predict codes[:, 0, t], audio logits at [t, q] codes[:, 1 + q, t]; the latter are zeros
    in the last `delay` frames. Gates are means over channels; 0 where there is no image.
    """

    text_logits: Float[Array, "B T V"]
    audio_logits: Float[Array, "B T levels C"] | None
    gates: Float[Array, "xa_layers B T"]


class Features(NamedTuple):
    """`Output` short of the text logits, which z at t gives through the text `head`."""

    z: Float[Array, "B T D"]
    head: layers.Weight
    audio_logits: Float[Array, "B T levels C"] | None
    gates: Float[Array, "xa_layers B T"]


class Inputs(NamedTuple):
    """What `VisionSpeech.features` takes of one part of a batch."""

    codes: Int[Array, "B rows T"]
    images: Images | None
    has_image: HasImage | None
    depth_codebooks: int


class VisionSpeech(nn.Module):
    """Moshi with gated cross-attention to an image; methods run through `apply(..., method=name)`."""

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
            self.gate = layers.GateWeights(xa.gate, m.backbone.width, m.backbone.heads)

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, method: Any = "build", **kwargs: Any) -> Any:
        """Returns {"params": every parameter}; `init(key)` needs no example input.

        A layer starts from the same values whichever layers have cross-attention: adapters of all layers
        are drawn, and those of `cross_attention.layers` returned.
        """
        xa = dataclasses.replace(self.config.cross_attention, layers=())
        config = dataclasses.replace(self.config, cross_attention=xa)
        whole = self.clone(config=config)
        variables = super(VisionSpeech, whole).init(rngs, *args, method=method, **kwargs)
        params = variables["params"]
        blocks = backbone.select_adapters(params["backbone"]["blocks"], self.config)
        return {"params": {**params, "backbone": {**params["backbone"], "blocks": blocks}}}

    def build(self) -> None:
        """Touches every parameter once."""
        m, size = self.config, self.config.siglip.image_size
        codes = jnp.zeros((1, m.codebooks, 2), jnp.int32)
        self(codes, jnp.zeros((1, size, size, 3)), depth_codebooks=m.codebooks_out)

    def __call__(
        self,
        codes: Int[Array, "B rows T"],
        images: Images | None,
        has_image: HasImage | None = None,
        *,
        depth_codebooks: int,
    ) -> Output:
        """The training forward: predicts every frame from the frames before it.

        Args:
          codes: undelayed; text in row 0 in [0, V), then audio in [0, C); -1 where absent. With the
            text row alone (rows = 1) the audio embeddings are not computed.
          images: pixels in [-1, 1], or the frozen encoder's features; None is exactly plain Moshi.
          has_image: rows, or frames, that have their image; None: all.
          depth_codebooks: levels whose audio logits are computed; 0: none.
        """
        out = self.features(codes, images, has_image, depth_codebooks=depth_codebooks)
        return Output(self.text_logits(out.z), out.audio_logits, out.gates)

    def features(
        self,
        codes: Int[Array, "B rows T"],
        images: Images | None,
        has_image: HasImage | None = None,
        *,
        depth_codebooks: int,
    ) -> Features:
        """The training forward without the text logits, which are V / D times as large as z."""
        return self.features_of([Inputs(codes, images, has_image, depth_codebooks)])[0]

    def features_of(self, parts: Sequence[Inputs]) -> list[Features]:
        """Returns `features` of each part; their rows go through the backbone's layers together.

        All parts have images or none has.
        """
        images = [part.images for part in parts if part.images is not None]
        if self.compute.gathers and all(one.ndim == 4 for one in images):
            images = self._encode_together(images)
        kv = [self.image_kv(one) for one in images]
        columns = [alignment.delay_codes(part.codes, self.config) for part in parts]
        hidden = self.hidden_of([c[:, :, :-1] for c in columns], kv, [p.has_image for p in parts])
        return [
            self._features(own, z, gate_means, depth_codebooks=part.depth_codebooks)
            for part, own, (z, gate_means) in zip(parts, columns, hidden, strict=True)
        ]

    def _encode_together(self, pixels: Sequence[Array]) -> list[Array]:
        """Returns `encode_images` of each part, the encoder's kernels gathered once for all."""
        shapes = tuple((one.shape[0], 1) for one in pixels)
        packed = packing.Packing(shapes, self.compute.row_shards)
        rows = packed.pack([one[:, None] for one in pixels])
        features = self.encode_images(rows.reshape(-1, *rows.shape[2:]))
        features = features.reshape(*rows.shape[:2], *features.shape[1:])
        return [one[:, 0] for one in packed.unpack(features)]

    def _features(
        self,
        columns: Int[Array, "B rows columns"],
        z: Float[Array, "B T D"],
        gate_means: Float[Array, "L B T"],
        *,
        depth_codebooks: int,
    ) -> Features:
        gates = gate_means[jnp.array(self.config.cross_attention_layers)]
        delays, audio_logits = self.config.delays, None
        if depth_codebooks:
            forced = columns[:, : depth_codebooks + 1, 1:]
            audio_logits = self.depth_logits(z, forced[:, 0], jnp.moveaxis(forced[:, 1:-1], 1, 2))
            audio_logits = alignment.undelay(audio_logits, delays[1 : depth_codebooks + 1])
        z = alignment.undelay(z[:, :, None], delays[:1])[:, :, 0]  # zeros have logits of zero
        return Features(z, self.backbone.head(), audio_logits, gates)

    def image_kv(self, images: Images) -> xattn.KeysValues:
        """Returns keys and values of images: pixels in [-1, 1], or the frozen encoder's features."""
        features = images if images.ndim == 3 else self.encode_images(images)
        return self.keys_values(self.project(features))

    def encode_images(self, pixels: Float[Array, "B height width 3"]) -> Float[Array, "B S E"]:
        """Returns the frozen encoder's features of images with values in [-1, 1]."""
        return self.image.encoder(pixels)

    def project(self, features: Float[Array, "B S E"]) -> Float[Array, "B S dim"]:
        """Returns image tokens."""
        return self.compute.shard_rows(self.image.project(self.compute.shard_rows(features)))

    def keys_values(self, tokens: Float[Array, "B S dim"]) -> xattn.KeysValues:
        """Returns the keys and values that cross-attention reads, computed once an image."""
        if self.config.cross_attention.share == "none":
            return self.backbone.keys_values(tokens)
        return xattn.keys_values(self.xa(), tokens)

    def hidden(
        self,
        codes: Int[Array, "B rows T"],
        kv: xattn.KeysValues | None,
        has_image: HasImage | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "L B T"]]:
        """Returns (z, gate means) for delayed codes; 0 for a layer without cross-attention."""
        return self.hidden_of([codes], [] if kv is None else [kv], [has_image])[0]

    def hidden_of(
        self,
        codes: Sequence[Array],
        kv: Sequence[xattn.KeysValues],
        has_image: Sequence[Array | None],
    ) -> list[tuple[Array, Array]]:
        """Returns `hidden` of each part of a batch; `kv` is empty if none has images."""
        masks = [self._image_mask(*part) for part in zip(codes, has_image, strict=True)]
        seen = tuple(kv) or None
        return self.backbone(codes, seen, self._shared(seen), image_mask=masks)

    def text_logits(self, z: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Returns float32 logits over the text vocabulary."""
        return self.backbone.text_logits(z)

    def depth_logits(
        self,
        z: Float[Array, "B T D"],
        text_ids: Int[Array, "B T"],
        audio_ids: Int[Array, "B T forced"],
    ) -> Float[Array, "B T levels C"]:
        """Returns the logits of the first `forced + 1` levels, teacher-forced with delayed ids."""
        B, T, D = z.shape
        ids = jnp.concatenate([text_ids[:, :, None], audio_ids], axis=-1).reshape(B * T, -1)
        logits = self.depformer(z.reshape(B * T, D), ids)
        return logits.reshape(B, T, *logits.shape[1:])

    def _image_mask(
        self, codes: Int[Array, "B rows T"], has_image: HasImage | None
    ) -> Bool[Array, "B T"]:
        """Returns which frames see the image: those that have one, within the config's scope."""
        B, _, T = codes.shape
        scope = self.config.cross_attention.scope
        has_image = jnp.ones((B, 1), bool) if has_image is None else has_image.reshape(B, -1)
        return has_image & scope(jnp.arange(T, dtype=jnp.int32))[None]

    def _shared(self, kv: Sequence[xattn.KeysValues] | None) -> xattn.Shared | None:
        """Returns the adapters that all layers share; None without an image."""
        if kv is None:
            return None
        xa = self.config.cross_attention
        kernels = self.xa() if xattn.shared_names(xa.share) else {}
        for name, kernel in kernels.items():  # gathered once, not in every layer
            axes = (compute_lib.HEADS,) if name == "out" else (None, compute_lib.HEADS)
            kernels[name] = self.compute.whole(kernel, *axes)
        return xattn.Shared(kernels, self.gate() if xa.gate is not None and xa.share_gate else None)
