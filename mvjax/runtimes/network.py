"""An exported model, written once for PyTorch and MLX: backbone, depth transformer and image encoder.

Independent of the JAX model, so that agreement with it means something. Source of the equations: reference
sections 2 and 3. There is one conversation and one frame at a time, so arrays have no batch and time axes.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from mvjax import types
from mvjax.runtimes import folder as folder_lib

GATE_SHIFT = 4.0  # of sigmoid gates without a bias of their own; reference section 2.6
SHARED = "transformer.layers.0.cross_attention.mha."

Tensor = Any  # an array of the framework
KeysValues = tuple[Tensor, Tensor]  # [N, frames or image tokens, H]


class BackboneFrame(NamedTuple):
    """What the backbone computed for one frame.

    Attributes:
      z: for the depth transformer.
      text_logits: [V].
      gates: gate activation of each layer with probes, else of the last ten.
      hidden: [L, D] with probes, else None.
    """

    z: Tensor
    text_logits: np.ndarray
    gates: np.ndarray
    hidden: np.ndarray | None


class Network(abc.ABC):
    """The model; a subclass says how its framework does what PyTorch and MLX do differently.

    Args:
      config: of the folder.
      weights: in float32 or quantized, named as in kyuteye_mlx's file.
    """

    xp: Any  # torch or mlx.core: what both name alike
    nn: Any  # torch.nn.functional or mlx.nn, likewise

    def __init__(self, config: folder_lib.ExportedConfig, weights: Mapping[str, Tensor]) -> None:
        self.config, self.weights = config, weights
        self._width = math.prod(weights["out_norm.weight"].shape)

    @abc.abstractmethod
    def _linear(self, name: str, x: Tensor) -> Tensor:
        """Applies a linear layer, with its bias if it has one."""

    @abc.abstractmethod
    def _row(self, name: str, i: int) -> Tensor:
        """Returns row i of an embedding."""

    @abc.abstractmethod
    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends without a mask, from [N, T, H] to [N, S, H]."""

    @abc.abstractmethod
    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        """Norms activations of the image encoder."""

    @abc.abstractmethod
    def _gelu(self, x: Tensor) -> Tensor:
        """Approximated by tanh."""

    @abc.abstractmethod
    def _patches(self, pixels: np.ndarray, kernel: Tensor, size: int) -> Tensor:
        """Returns [S, E], the patches of an image times a kernel [E, 3, size, size]."""

    @abc.abstractmethod
    def _numpy(self, x: Tensor) -> np.ndarray: ...

    def empty_cache(self) -> list[KeysValues]:
        """Returns the KV cache before the first frame: a ring, in which frame s lies in slot s % context."""
        c, zeros = self.config, self.xp.zeros
        shape = (c.heads, c.context, self._width // c.heads)
        return [(zeros(shape), zeros(shape)) for _ in range(c.layers)]

    def frame(
        self,
        column: Int[np.ndarray, "K"],
        *,
        s: int,
        cache: list[KeysValues],
        image: KeysValues | None,
        probes: bool,
    ) -> BackboneFrame:
        """Runs frame s, and writes it into the KV cache.

        Args:
          column: delayed ids; -1 adds no embedding.
          s: position.
          cache: with the frames before.
          image: what `keys_values` returned, or None.
          probes: keep every layer's gate activation and residual stream.
        """
        names = ["text_emb", *(f"audio_embs.{k}" for k in range(len(column) - 1))]
        rows = [self._row(name, i) for name, i in zip(names, column.tolist()) if i >= 0]
        x, hidden, gates = sum(rows, self.xp.zeros(self._width)), [], []
        for i, past in enumerate(cache):
            x, gate = self._layer(i, x, s=s, past=past, image=image)
            hidden.append(x)
            gates.append(gate)
        kept = gates if probes else gates[-types.REPORTED_LAYERS :]
        z = self._norm("out_norm", x)
        return BackboneFrame(
            z=z,
            text_logits=self._numpy(self._linear("text_linear", z)),
            gates=self._numpy(self.xp.stack([gate.mean() for gate in kept])),
            hidden=self._numpy(self.xp.stack(hidden)) if probes else None,
        )

    def _layer(
        self, i: int, x: Tensor, *, s: int, past: KeysValues, image: KeysValues | None
    ) -> tuple[Tensor, Tensor]:
        """Returns (residual stream [D], gate over channels or one for all; 0 where no image is seen)."""
        c, p, gate = self.config, f"transformer.layers.{i}.", self.xp.zeros(())
        y = self._linear(f"{p}self_attn.in_proj", self._norm(f"{p}norm1", x))
        q, k, v = y.reshape(3, c.heads, -1)
        q, k = self._rope(q, s), self._rope(k, s)
        keys, values = past
        slot, seen = s % c.context, min(s + 1, c.context)
        keys[:, slot], values[:, slot] = k, v
        u = self._attend_once(q, (keys[:, :seen], values[:, :seen]))
        x = x + self._linear(f"{p}self_attn.out_proj", u)
        if image is not None and s in c.scope and i in c.image_layers:
            q = self._linear(f"{SHARED}q_proj", self._norm(f"{p}norm_cross", x))
            u = self._attend_once(q.reshape(c.heads, -1), image)
            u = self._linear(f"{SHARED}out_proj", u)
            gate = self._gate(f"{p}cross_attention.gate.alpha", u)
            alpha = self.weights.get(f"{p}cross_attention.per_layer_alpha", self.xp.ones(1))
            x = x + u * gate * alpha.reshape(())
        return x + self._mlp(f"{p}gating.", self._norm(f"{p}norm2", x)), gate

    def _gate(self, name: str, u: Tensor) -> Tensor:
        shift = GATE_SHIFT
        match self.config.gate:
            case "none":
                return self.xp.ones(())
            case "constant":
                logits = self.weights[name].reshape(())
            case "conditional":
                hidden = self.nn.relu(self._linear(f"{name}.layers.0", u))
                logits = self._linear(f"{name}.layers.2", hidden)
                shift = 0.0 if f"{name}.layers.2.bias" in self.weights else GATE_SHIFT
        if self.config.activation == "tanh":
            return self.xp.tanh(logits)
        return self.xp.sigmoid(logits - shift)

    def generate(
        self,
        z: Tensor,
        text: int,
        forced: Int[np.ndarray, "Q"],
        sample: Callable[[np.ndarray], int],
    ) -> tuple[Int[np.ndarray, "Q"], Float[np.ndarray, "Q C"]]:
        """Returns (audio codes, logits) of one frame, one codebook after the other.

        Args:
          z: of the backbone.
          text: token of the frame.
          forced: codes to take in place of sampled ones; UNGENERATED leaves the choice.
          sample: returns a code from logits [C].
        """
        past: dict[int, KeysValues] = {}
        code, codes, logits = text, [], []
        for q, wanted in enumerate(forced.tolist()):
            p = f"depformer.slices.{q}."
            x = self._linear(f"{p}linear_in", z) + self._row(f"{p}emb", code)
            for i in range(self.config.depth_layers):
                x = self._depth_layer(f"{p}transformer.layers.{i}.", i, x, past)
            logits.append(self._numpy(self._linear(f"{p}linear_out", x)))
            code = sample(logits[-1]) if wanted == types.UNGENERATED else wanted
            codes.append(code)
        return np.asarray(codes), np.stack(logits)

    def _depth_layer(self, p: str, i: int, x: Tensor, past: dict[int, KeysValues]) -> Tensor:
        """Returns the residual stream; adds this codebook's keys and values to the layer's past."""
        c = self.config
        y = self._linear(f"{p}self_attn.in_proj", self._norm(f"{p}norm1", x, *c.depth_norm))
        q, k, v = y.reshape(3, c.depth_heads, -1)
        k, v = k[:, None], v[:, None]
        if i in past:
            k, v = (self.xp.concatenate([*pair], 1) for pair in zip(past[i], (k, v)))
        past[i] = k, v
        x = x + self._linear(f"{p}self_attn.out_proj", self._attend_once(q, past[i]))
        return x + self._mlp(f"{p}gating.", self._norm(f"{p}norm2", x, *c.depth_norm))

    def keys_values(self, pixels: Float[np.ndarray, "1 height width 3"]) -> KeysValues:
        """Returns the keys and values of one image in [-1, 1]."""
        c, p, x = self.config, "transformer.image_prefix.", self._encode(pixels)
        if f"{p}proj_xa.weight" in self.weights:
            x = self._linear(f"{p}proj_xa", x)
        kv = self._linear(f"{SHARED}kv_proj", self._norm(f"{p}norm_xa", x, *c.image_norm))
        half = kv.shape[-1] // 2
        return _heads(kv[:, :half], c.heads), _heads(kv[:, half:], c.heads)

    def _encode(self, pixels: np.ndarray) -> Tensor:
        """Returns SigLIP features [S, E]; reference section 3.2."""
        p, encoder = "img_embedder.model.", self.config.encoder
        embeddings, w = f"{p}embeddings.", self.weights
        patches = self._patches(pixels, w[f"{embeddings}patch_embedding.weight"], encoder.patch)
        x = patches + w[f"{embeddings}patch_embedding.bias"]
        x = x + w[f"{embeddings}position_embedding.weight"]
        for i in range(encoder.layers):
            layer = f"{p}encoder.layers.{i}."
            y = self._layer_norm(f"{layer}layer_norm1", x)
            parts = (self._linear(f"{layer}self_attn.{part}_proj", y) for part in "qkv")
            u = self._attend(*(_heads(part, encoder.heads) for part in parts))
            u = u.swapaxes(0, 1).reshape(x.shape)
            x = x + self._linear(f"{layer}self_attn.out_proj", u)
            y = self._linear(f"{layer}mlp.fc1", self._layer_norm(f"{layer}layer_norm2", x))
            x = x + self._linear(f"{layer}mlp.fc2", self._gelu(y))
        return self._layer_norm(f"{p}post_layernorm", x)

    def _norm(
        self, name: str, x: Tensor, kind: folder_lib.NormKind = "mean_square", eps: float = 1e-8
    ) -> Tensor:
        """Returns x * (weight * rsqrt(s + eps)); reference section 2.2."""
        square, n = self.xp.square, x.shape[-1]
        if kind == "variance":
            s = square(x - x.mean(-1, keepdims=True)).sum(-1, keepdims=True) / (n - 1)
        else:
            s = square(x).mean(-1, keepdims=True)
        return x * (self.weights[f"{name}.weight"].reshape(-1) * self.xp.rsqrt(s + eps))

    def _rope(self, x: Tensor, position: int) -> Tensor:
        """Rotates the pairs (2i, 2i+1) of x [N, H]."""
        xp, H = self.xp, x.shape[-1]
        rate = -2.0 * math.log(self.config.rope_base) / H
        angles = position * xp.exp(xp.arange(H // 2) * rate)
        cos, sin = xp.cos(angles), xp.sin(angles)
        pairs = x.reshape(-1, H // 2, 2)
        r, i = pairs[..., 0], pairs[..., 1]
        return xp.stack([r * cos - i * sin, r * sin + i * cos], -1).reshape(-1, H)

    def _attend_once(self, q: Tensor, kv: KeysValues) -> Tensor:
        """Attends from one frame, q [N, H]; returns [N x H]."""
        return self._attend(q[:, None], *kv).reshape(-1)

    def _mlp(self, p: str, x: Tensor) -> Tensor:
        """Returns out(silu(a) * b), with a and b the halves of one projection."""
        a, b = self._linear(f"{p}linear_in", x).reshape(2, -1)
        return self._linear(f"{p}linear_out", self.nn.silu(a) * b)


def _heads(x: Tensor, n: int) -> Tensor:
    """[S, N x H] -> [N, S, H]."""
    return x.reshape(x.shape[0], n, -1).swapaxes(0, 1)
