"""An exported model, written once for PyTorch and MLX: one frame of B conversations.

Independent of the JAX model, so that agreement with it means something. Source of the equations: reference
sections 2 and 3. Activations are [B, D], without a time axis. Norms, softmax, RoPE, gates and logits are
float32 whatever the weights are.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from mvjax import types
from mvjax.runtimes import choosing, interface, slots
from mvjax.runtimes import folder as folder_lib

GATE_SHIFT = 4.0  # of sigmoid gates without a bias of their own; reference section 2.6
SHARED = "transformer.layers.0.cross_attention.mha."

Tensor = Any  # an array of the framework
KeysValues = tuple[Tensor, Tensor]  # [B, N, frames or image tokens, H]


class Seen(NamedTuple):
    """The images of B rows, and which rows see theirs.

    Attributes:
      keys, values: [B, N, S, H].
      sees: bool [B]; None: all do.
    """

    keys: Tensor
    values: Tensor
    sees: Tensor | None


@runtime_checkable
class Cache(Protocol):
    """The ring KV caches of B rows at one frame: frame s lies in slot s % context of each layer's."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Writes the frame's keys and values [B, N, H], then attends to the slots up to it from q."""
        ...


class Backbone(NamedTuple):
    """What the backbone computed.

    Attributes:
      z: [B, D], for the depth transformer.
      gates: gate activation of each layer, [B].
      hidden: the residual stream after each layer, [B, D].
    """

    z: Tensor
    gates: list[Tensor]
    hidden: list[Tensor]


class Network(choosing.Chooser, slots.BatchedModel):
    """The model; a subclass says how its framework does what PyTorch and MLX do differently.

    Args:
      config: of the folder.
      weights: named as in kyuteye_mlx's file.
    """

    nn: Any  # torch.nn.functional or mlx.nn: what both name alike

    def __init__(self, config: folder_lib.ExportedConfig, weights: Mapping[str, Tensor]) -> None:
        self.config, self.weights, self.scope = config, weights, config.scope

    @property
    def sizes(self) -> interface.Sizes:
        """As `interface.Model.sizes`."""
        return self.config.sizes

    def of_one_codebook(self) -> Network:
        """Returns the model with a depth transformer of one step, on the same weights; to measure latency."""
        other: Any = copy.copy(self)
        other.config = dataclasses.replace(self.config, codebooks_out=1)
        other._depth_inputs = self._depth_inputs  # of all steps, since weights may be joined
        return other

    @abc.abstractmethod
    def _linear(self, name: str, x: Tensor) -> Tensor:
        """Applies a linear layer, with its bias if it has one."""

    @abc.abstractmethod
    def _rows(self, name: str, ids: Tensor) -> Tensor:
        """Returns the rows [B, D] of an embedding for ids [B]; zeros for -1."""

    @abc.abstractmethod
    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends without a mask, from [B, N, T, H] to [B, N, S, H]."""

    @abc.abstractmethod
    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        """Norms activations of the image encoder."""

    @abc.abstractmethod
    def _gelu(self, x: Tensor) -> Tensor:
        """Approximated by tanh."""

    @abc.abstractmethod
    def _patches(self, pixels: np.ndarray, kernel: Tensor, size: int) -> Tensor:
        """Returns [1, S, E], the patches of an image times a kernel [E, 3, size, size]."""

    @abc.abstractmethod
    def _float(self, x: Tensor) -> Tensor:
        """To float32."""

    def frame(
        self,
        inputs: slots.Inputs,
        cache: Cache,
        image: Seen | None,
        *,
        probes: bool,
        known: choosing.Known = choosing.NOTHING_KNOWN,
    ) -> slots.Outputs:
        """Computes one frame; the arrays of `inputs` and of what is returned are the framework's.

        Args:
          inputs: as an engine gets them.
          cache: at the positions of `inputs`.
          image: what the rows see; None runs without cross-attention.
          probes: return the fields of `interface.Probes`.
          known: what the host knows of the draws.
        """
        stack, draws, given = self.xp.stack, inputs.sampling, types.UNGENERATED
        out = self.backbone(inputs.column, inputs.position, cache, image)
        text_logits = self._float(self._linear("text_linear", out.z))
        logits = self.penalized(text_logits, draws) if known.penalized else text_logits
        text = self.choose(logits, draws, 0, known.text_top_k)
        text = code = self.xp.where(inputs.text == given, text, inputs.text)
        past, entering = [], self._depth_inputs(out.z)
        audio, audio_logits = [], []
        for q in range(self.config.codebooks_out):
            audio_logits.append(self._depth(q, entering[q], code, past))
            code = self.choose(audio_logits[-1], draws, 1 + q, known.audio_top_k)
            code = self.xp.where(inputs.audio[:, q] == given, code, inputs.audio[:, q])
            audio.append(code)
        fields = None
        if probes:
            fields = {
                "text_logits": text_logits,
                "audio_logits": stack(audio_logits, 1),
                "gates": stack(out.gates, 1),
                "hidden": self._float(stack(out.hidden, 1)),
            }
        gate = stack(out.gates[-types.REPORTED_LAYERS :]).mean(0)
        return slots.Outputs(text, stack(audio, 1), gate, fields)

    def backbone(
        self, column: Tensor, position: Tensor, cache: Cache, image: Seen | None
    ) -> Backbone:
        """Runs the backbone over delayed ids [B, K], -1 for none; `cache` and `image` as in `frame`."""
        turn, hidden, gates = self._turn(position), [], []
        x = self._embed(column)
        shut = self.xp.zeros(x.shape[0])
        for i in range(self.config.layers):
            x, gate = x + self._self_attention(i, x, turn, cache), shut
            if image is not None and i in self.config.image_layers:
                x, gate = self._cross_attention(i, x, image)
            p = f"transformer.layers.{i}."
            x = x + self._mlp(f"{p}gating.", self._norm(f"{p}norm2", x))
            hidden.append(x)
            gates.append(gate)
        return Backbone(self._norm("out_norm", x), gates, hidden)

    def _embed(self, column: Tensor) -> Tensor:
        names = ["text_emb", *(f"audio_embs.{k}" for k in range(column.shape[1] - 1))]
        return sum(self._rows(name, column[:, k]) for k, name in enumerate(names))

    def _self_attention(self, i: int, x: Tensor, turn: Any, cache: Cache) -> Tensor:
        p = f"transformer.layers.{i}."
        y = self._linear(f"{p}self_attn.in_proj", self._norm(f"{p}norm1", x))
        y = y.reshape(x.shape[0], 3, self.config.heads, -1)
        qk = self._rope(y[:, :2], turn)
        u = cache.attend(i, qk[:, 0], qk[:, 1], y[:, 2])
        return self._linear(f"{p}self_attn.out_proj", u.reshape(x.shape[0], -1))

    def _cross_attention(self, i: int, x: Tensor, image: Seen) -> tuple[Tensor, Tensor]:
        """Returns the residual stream, to which what is seen is added, and the gate activation [B]."""
        p, B = f"transformer.layers.{i}.", x.shape[0]
        q = self._linear(f"{SHARED}q_proj", self._norm(f"{p}norm_cross", x))
        u = self._attend(q.reshape(B, self.config.heads, 1, -1), image.keys, image.values)
        u = self._linear(f"{SHARED}out_proj", u.reshape(B, -1))
        gate = self._gate(f"{p}cross_attention.gate.alpha", u)
        alpha = self.weights.get(f"{p}cross_attention.per_layer_alpha")
        return self._gated_sum(x, u, gate, alpha, image.sees)

    def _gate(self, name: str, u: Tensor) -> tuple[Tensor, float]:
        """Returns logits [B, D] or [1, 1], and what a sigmoid subtracts from them."""
        match self.config.gate:
            case "none":
                return self.xp.ones((1, 1)), 0.0
            case "constant":
                return self.weights[name].reshape(1, 1), GATE_SHIFT
            case "conditional":
                hidden = self.nn.relu(self._linear(f"{name}.layers.0", u))
                biased = f"{name}.layers.2.bias" in self.weights
                return self._linear(f"{name}.layers.2", hidden), 0.0 if biased else GATE_SHIFT

    def _gated_sum(
        self, x: Tensor, u: Tensor, gate: tuple[Tensor, float], alpha: Tensor, sees: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns (x + alpha * gate * u, mean of the gate [B]), and (x, 0) of rows that see nothing."""
        gates, shift = self._float(gate[0]), gate[1]
        if self.config.gate != "none":
            tanh = self.config.activation == "tanh"
            gates = self.xp.tanh(gates) if tanh else self.xp.sigmoid(gates - shift)
        added, means = self._float(u) * gates, gates.mean(-1)
        if alpha is not None:
            added = added * self._float(alpha).reshape(())
        if sees is not None:
            added = self.xp.where(sees[:, None], added, 0.0)
            means = self.xp.where(sees, means, 0.0)
        return x + self._as(added, x), means

    def _depth_inputs(self, z: Tensor) -> list[Tensor]:
        """Returns what the backbone says to each step of the depth transformer."""
        steps = range(self.config.codebooks_out)
        return [self._linear(f"depformer.slices.{q}.linear_in", z) for q in steps]

    def _depth(self, q: int, x: Tensor, code: Tensor, past: list[Tensor]) -> Tensor:
        """Returns logits [B, C] of codebook q in float32; adds to each layer's `past` [B, 2, N, Q, H]."""
        c, p, B = self.config, f"depformer.slices.{q}.", x.shape[0]
        x = x + self._rows(f"{p}emb", code)
        for i in range(c.depth_layers):
            layer = f"{p}transformer.layers.{i}."
            y = self._norm(f"{layer}norm1", x, *c.depth_norm)
            y = self._linear(f"{layer}self_attn.in_proj", y).reshape(B, 3, c.depth_heads, 1, -1)
            if q == 0:
                past.append(y[:, 1:])
                u = y[:, 2]  # there is nothing else to attend to
            else:
                past[i] = self.xp.concatenate([past[i], y[:, 1:]], 3)
                u = self._attend(y[:, 0], past[i][:, 0], past[i][:, 1])
            x = x + self._linear(f"{layer}self_attn.out_proj", u.reshape(B, -1))
            x = x + self._mlp(f"{layer}gating.", self._norm(f"{layer}norm2", x, *c.depth_norm))
        return self._float(self._linear(f"{p}linear_out", x))

    def encode_image(self, pixels: np.ndarray) -> KeysValues:
        """As `interface.Model.encode_image`."""
        self.sizes.check_pixels(pixels)
        c, p, x = self.config, "transformer.image_prefix.", self._encode(pixels)
        if f"{p}proj_xa.weight" in self.weights:
            x = self._linear(f"{p}proj_xa", x)
        kv = self._linear(f"{SHARED}kv_proj", self._norm(f"{p}norm_xa", x, *c.image_norm))
        half = kv.shape[-1] // 2
        return _heads(kv[..., :half], c.heads), _heads(kv[..., half:], c.heads)

    def _encode(self, pixels: np.ndarray) -> Tensor:
        """Returns SigLIP features [1, S, E]; reference section 3.2."""
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
            u = u.swapaxes(1, 2).reshape(x.shape)
            x = x + self._linear(f"{layer}self_attn.out_proj", u)
            y = self._linear(f"{layer}mlp.fc1", self._layer_norm(f"{layer}layer_norm2", x))
            x = x + self._linear(f"{layer}mlp.fc2", self._gelu(y))
        return self._layer_norm(f"{p}post_layernorm", x)

    def _norm(
        self, name: str, x: Tensor, kind: folder_lib.NormKind = "mean_square", eps: float = 1e-8
    ) -> Tensor:
        """Returns x * (weight * rsqrt(s + eps)); reference section 2.2."""
        square, n, y = self.xp.square, x.shape[-1], self._float(x)
        if kind == "variance":
            s = square(y - y.mean(-1, keepdims=True)).sum(-1, keepdims=True) / (n - 1)
        else:
            s = square(y).mean(-1, keepdims=True)
        weight = self._float(self.weights[f"{name}.weight"]).reshape(-1)
        return self._as(y * (weight * self.xp.rsqrt(s + eps)), x)

    def _turn(self, position: Tensor) -> Any:
        """Returns the cosines and sines of RoPE, [B, 1, 1, H / 2], for `_rope`."""
        c, xp = self.config, self.xp
        half = self.weights["out_norm.weight"].reshape(-1).shape[0] // c.heads // 2
        rates = xp.exp(xp.arange(half) * (-math.log(c.rope_base) / half))
        angles = self._float(position)[:, None, None, None] * rates
        return xp.cos(angles), xp.sin(angles)

    def _rope(self, x: Tensor, turn: Any) -> Tensor:
        """Rotates the pairs (2i, 2i+1) of x [B, 2, N, H]."""
        cos, sin = turn
        pairs = self._float(x).reshape(*x.shape[:-1], -1, 2)
        r, i = pairs[..., 0], pairs[..., 1]
        turned = self.xp.stack([r * cos - i * sin, r * sin + i * cos], -1)
        return self._as(turned.reshape(x.shape), x)

    def _mlp(self, p: str, x: Tensor) -> Tensor:
        """Returns out(silu(a) * b), of the halves of one projection."""
        return self._linear(f"{p}linear_out", self._gated_silu(self._linear(f"{p}linear_in", x)))

    def _gated_silu(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return self.nn.silu(x[..., :half]) * x[..., half:]


def _heads(x: Tensor, n: int) -> Tensor:
    """[1, S, N x H] -> [1, N, S, H]."""
    return x.reshape(*x.shape[:2], n, -1).swapaxes(1, 2)
