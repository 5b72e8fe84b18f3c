"""Runs an exported MLX folder one frame at a time in MLX, in float32.

Independent of the JAX model, so that agreement with it means something. Source of the equations:
reference sections 2 and 3. Layout: reference section 4.5. Quantized weights stay quantized on a GPU;
on the CPU, where MLX is for correctness, they are dequantized once, exactly.
"""

from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mvjax import types
from mvjax.runtimes import delays
from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes.mlx import tensors as mlx_tensors

REPORTED_LAYERS = 10  # of the gate mean; reference section 2.8
GATE_SHIFT = 4.0  # of sigmoid gates; reference section 2.6

Past = list[tuple[mx.array, mx.array]]


class Runtime:
    """A conversation with an exported model.

    Args:
      folder: written by `mvjax.export.folder`, target "mlx".
      temperature: of text and audio; 0 is greedy.
      top_k: ids to draw from; 0: all.
      seed: of the draws.
    """

    def __init__(
        self, folder: Path, *, temperature: float = 0.0, top_k: int = 0, seed: int = 0
    ) -> None:
        self.model = folder_lib.read_mlx(Path(folder))
        self.weights = mlx_tensors.load(self.model, dequantized=_on_cpu())
        self.sample = delays.Sampler(temperature=temperature, top_k=top_k, seed=seed)
        m = self.model
        self.timeline = delays.Timeline(
            m.delays,
            codebooks_out=m.codebooks_out,
            text_vocab=m.text_vocab,
            audio_vocab=m.audio_vocab,
        )
        self._image: tuple[mx.array, mx.array] | None = None
        self.reset()

    def reset(self) -> None:
        """Starts a new conversation about the same image."""
        m = self.model
        width = self.weights["out_norm.weight"].size
        shape = (m.heads, m.context, width // m.heads)
        self._past: Past = [(mx.zeros(shape), mx.zeros(shape)) for _ in range(m.layers)]
        self.timeline.reset()

    def image(self, pixels: np.ndarray | None) -> None:
        """Shows an image, float32 [1, height, width, 3] in [-1, 1]; None takes it away."""
        if pixels is None:
            self._image = None
            return
        w, prefix = self.weights, "transformer.image_prefix."
        x = _encode_image(w, self.model.encoder, mx.array(np.asarray(pixels)))
        x = _linear(w, f"{prefix}proj_xa", x)
        x = _norm(x, w[f"{prefix}norm_xa.weight"], *self.model.image_norm)
        kv = _linear(w, "transformer.layers.0.cross_attention.mha.kv_proj", x)
        k, v = (_heads(part, self.model.heads) for part in mx.split(kv, 2, axis=-1))
        mx.eval(k, v)
        self._image = (k, v)

    def step(
        self,
        user_codes: np.ndarray,
        *,
        text: int | None = None,
        audio: np.ndarray | None = None,
    ) -> delays.StepOut:
        """Hears one frame and says one.

        Args:
          user_codes: [number of user codebooks], undelayed; -1 where absent.
          text: puts this id in place of the chosen one.
          audio: puts these codes [Q], as chosen in this call, in place of the chosen ones.
        """
        x = self._embed(self.timeline.column())
        hidden, gates = [], []
        for layer in range(self.model.layers):
            x, gate = self._layer(layer, x)
            hidden.append(x)
            gates.append(gate)
        z = _norm(x, self.weights["out_norm.weight"], "mean_square", 1e-8)
        text_logits = np.array(_linear(self.weights, "text_linear", z))
        text_token = self.sample(text_logits) if text is None else int(text)
        audio_tokens, audio_logits = self._speak(z, text_token, audio)
        codes = self.timeline.push(text_token, audio_tokens, np.asarray(user_codes))
        opening = np.array(mx.stack(gates))
        return delays.StepOut(
            text_token=text_token,
            audio_codes=codes,
            text_logits=text_logits,
            audio_logits=audio_logits,
            gate=float(opening[-REPORTED_LAYERS:].mean()),
            audio_tokens=audio_tokens,
            gates=opening,
            hidden=np.array(mx.stack(hidden)),
        )

    def _embed(self, column: np.ndarray) -> mx.array:
        names = ["text_emb", *(f"audio_embs.{k}" for k in range(len(column) - 1))]
        x = mx.zeros_like(self.weights["out_norm.weight"])
        for name, i in zip(names, column.tolist()):
            if i >= 0:
                x = x + _row(self.weights, name, i)
        return x

    def _layer(self, layer: int, x: mx.array) -> tuple[mx.array, mx.array]:
        """Returns (residual stream [D], mean gate opening)."""
        w, p = self.weights, f"transformer.layers.{layer}."
        y = _norm(x, w[f"{p}norm1.weight"], "mean_square", 1e-8)
        q, k, v = _linear(w, f"{p}self_attn.in_proj", y).reshape(3, self.model.heads, -1)
        s, context = self.timeline.step, self.model.context
        q, k = (_rope(part, s, self.model.rope_base) for part in (q, k))
        keys, values = self._past[layer]
        keys[:, s % context], values[:, s % context] = k, v
        seen = min(s + 1, context)
        x = x + _linear(w, f"{p}self_attn.out_proj", _attend(q, keys[:, :seen], values[:, :seen]))
        gate = mx.array(0.0)
        if self._image is not None and s in self.model.scope:
            y, gate = self._look(p, _norm(x, w[f"{p}norm_cross.weight"], "mean_square", 1e-8))
            x = x + y
        return x + _mlp(
            w, f"{p}gating.", _norm(x, w[f"{p}norm2.weight"], "mean_square", 1e-8)
        ), gate

    def _look(self, p: str, y: mx.array) -> tuple[mx.array, mx.array]:
        """Returns (gated cross-attention result, mean gate opening)."""
        w, shared = self.weights, "transformer.layers.0.cross_attention.mha."
        assert self._image is not None
        q = _linear(w, f"{shared}q_proj", y).reshape(self.model.heads, -1)
        u = _linear(w, f"{shared}out_proj", _attend(q, *self._image))
        if self.model.gate == "none":
            return u, mx.array(1.0)
        inner = _linear(w, f"{p}cross_attention.gate.alpha.layers.0", u)
        logits = _linear(w, f"{p}cross_attention.gate.alpha.layers.2", nn.relu(inner))
        g = mx.sigmoid(logits - GATE_SHIFT)
        return u * g, g.mean()

    def _speak(
        self, z: mx.array, text: int, forced: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (codes [Q], logits [Q, C]) of one frame."""
        told, past = self.timeline.told(), []
        said, codes, logits = text, [], []
        for step in range(self.model.codebooks_out):
            p = f"depformer.slices.{step}."
            x = _linear(self.weights, f"{p}linear_in", z) + _row(self.weights, f"{p}emb", said)
            for layer in range(self.model.depth_layers):
                x = self._depth_layer(f"{p}transformer.layers.{layer}.", layer, x, past)
            logits.append(np.array(_linear(self.weights, f"{p}linear_out", x)))
            codes.append(self.sample(logits[-1]) if forced is None else int(forced[step]))
            said = codes[-1] if told[step] == types.UNGENERATED else int(told[step])
        return np.asarray(codes), np.stack(logits)

    def _depth_layer(self, p: str, layer: int, x: mx.array, past: Past) -> mx.array:
        """Returns the residual stream [d]; adds this step's keys and values to the layer's past."""
        w = self.weights
        y = _norm(x, w[f"{p}norm1.weight"], *self.model.depth_norm)
        q, k, v = _linear(w, f"{p}self_attn.in_proj", y).reshape(3, self.model.depth_heads, -1)
        k, v = k[:, None], v[:, None]
        if layer == len(past):
            past.append((k, v))
        else:
            old_k, old_v = past[layer]
            past[layer] = (mx.concatenate([old_k, k], 1), mx.concatenate([old_v, v], 1))
        x = x + _linear(w, f"{p}self_attn.out_proj", _attend(q, *past[layer]))
        return x + _mlp(w, f"{p}gating.", _norm(x, w[f"{p}norm2.weight"], *self.model.depth_norm))


def _encode_image(
    w: mlx_tensors.Weights, encoder: folder_lib.Encoder, pixels: mx.array
) -> mx.array:
    """Returns SigLIP features [S, E] of one image [1, height, width, 3]; reference section 3.2."""
    size = encoder.image_size
    if pixels.shape != (1, size, size, 3):
        raise ValueError(
            f"image: expected [1, {size}, {size}, 3], got {list(pixels.shape)}; resize"
        )
    p = "img_embedder.model."

    def norm(name: str, y: mx.array) -> mx.array:
        return mx.fast.layer_norm(y, w[f"{p}{name}.weight"], w[f"{p}{name}.bias"], encoder.eps)

    kernel = w[f"{p}embeddings.patch_embedding.weight"].transpose(0, 2, 3, 1)  # OIHW -> OHWI
    patches = mx.conv2d(pixels, kernel, stride=encoder.patch)
    x = patches.reshape(-1, patches.shape[-1]) + w[f"{p}embeddings.patch_embedding.bias"]
    x = x + w[f"{p}embeddings.position_embedding.weight"]
    for i in range(encoder.layers):
        layer = f"encoder.layers.{i}."
        y = norm(f"{layer}layer_norm1", x)
        attention = f"{p}{layer}self_attn."
        q, k, v = (
            _heads(_linear(w, f"{attention}{part}_proj", y), encoder.heads) for part in "qkv"
        )
        scale = q.shape[-1] ** -0.5
        u = mx.fast.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0]
        x = x + _linear(w, f"{attention}out_proj", u.transpose(1, 0, 2).reshape(x.shape))
        y = _linear(w, f"{p}{layer}mlp.fc1", norm(f"{layer}layer_norm2", x))
        x = x + _linear(w, f"{p}{layer}mlp.fc2", nn.gelu_approx(y))
    return norm("post_layernorm", x)


def _on_cpu() -> bool:
    return mx.default_device() == mx.Device(mx.cpu)


def _row(w: mlx_tensors.Weights, name: str, i: int) -> mx.array:
    """Returns row i of an embedding."""
    weight, scales = w[f"{name}.weight"][i], w.get(f"{name}.scales")
    if scales is None:
        return weight
    biases = w[f"{name}.biases"]
    row = mx.dequantize(
        weight[None], scales[i][None], biases[i][None], group_size=w.group_size, bits=w.bits
    )
    return row[0]


def _linear(w: mlx_tensors.Weights, name: str, x: mx.array) -> mx.array:
    weight, scales = w[f"{name}.weight"], w.get(f"{name}.scales")
    if scales is None:
        y = _product(x, weight)
    else:
        biases, rows = w[f"{name}.biases"], x.reshape(-1, x.shape[-1])
        y = mx.quantized_matmul(
            rows, weight, scales, biases, transpose=True, group_size=w.group_size, bits=w.bits
        ).reshape(*x.shape[:-1], -1)
    bias = w.get(f"{name}.bias")
    return y if bias is None else y + bias


def _product(x: mx.array, weight: mx.array) -> mx.array:
    """Returns x [rows, in] times weight [out, in], over the inputs.

    MLX's CPU product adds the inputs up one after the other, so that its rounding error grows with
    their number (5 times numpy's at 528). In blocks of up to 32 it is as exact as elsewhere.
    """
    if not _on_cpu():
        return x @ weight.T
    out, width = weight.shape
    block = math.gcd(width, 32)
    parts = x.reshape(-1, width // block, block).transpose(1, 0, 2)
    blocks = weight.reshape(out, width // block, block).transpose(1, 2, 0)
    return mx.sum(parts @ blocks, axis=0).reshape(*x.shape[:-1], out)


def _norm(x: mx.array, weight: mx.array, kind: folder_lib.NormKind, eps: float) -> mx.array:
    """Returns x * (weight * rsqrt(s + eps)); reference section 2.2."""
    variance = kind == "variance"
    s = x.var(-1, keepdims=True, ddof=1) if variance else x.square().mean(-1, keepdims=True)
    return x * (weight * mx.rsqrt(s + eps))


def _rope(x: mx.array, position: int, base: float) -> mx.array:
    """Rotates the pairs (2i, 2i+1) of x [N, H]."""
    H = x.shape[-1]
    angles = position * mx.exp(mx.arange(H // 2) * (-2.0 * math.log(base) / H))
    pairs = x.reshape(-1, H // 2, 2)
    r, i = pairs[..., 0], pairs[..., 1]
    cos, sin = mx.cos(angles), mx.sin(angles)
    return mx.stack([r * cos - i * sin, r * sin + i * cos], axis=-1).reshape(-1, H)


def _heads(x: mx.array, heads: int) -> mx.array:
    """[S, N x H] -> [N, S, H]."""
    return x.reshape(x.shape[0], heads, -1).transpose(1, 0, 2)


def _attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """Attends from one frame, q [N, H], to keys and values [N, S, H]; returns [N x H]."""
    scale = q.shape[-1] ** -0.5
    u = mx.fast.scaled_dot_product_attention(q[None, :, None], k[None], v[None], scale=scale)
    return u.reshape(-1)


def _mlp(w: mlx_tensors.Weights, name: str, x: mx.array) -> mx.array:
    a, b = _linear(w, f"{name}linear_in", x).reshape(2, -1)
    return _linear(w, f"{name}linear_out", nn.silu(a) * b)
