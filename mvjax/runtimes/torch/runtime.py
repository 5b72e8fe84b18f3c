"""Runs an exported torch or candle folder one frame at a time in PyTorch, on the CPU in float32.

Independent of the JAX model, so that agreement with it means something. Source of the equations:
reference sections 2 and 3. Layout: reference section 4.3; candle's is translated to it first.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import torch as safetensors_torch

from mvjax import types
from mvjax.runtimes import delays
from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes.torch import candle_tensors

REPORTED_LAYERS = 10  # of the gate mean; reference section 2.8
GATE_SHIFT = 4.0  # of sigmoid gates without a bias of their own; reference section 2.6
_SHARED = "llm.transformer.layers.0.cross_attention.mha."

Past = list[tuple[torch.Tensor, torch.Tensor]]


class Runtime:
    """A conversation with an exported model.

    Args:
      folder: written by `mvjax.export.folder`, target "torch" or "candle".
      temperature: of text and audio; 0 is greedy.
      top_k: ids to draw from; 0: all.
      seed: of the draws.
    """

    def __init__(
        self, folder: Path, *, temperature: float = 0.0, top_k: int = 0, seed: int = 0
    ) -> None:
        candle = folder_lib.is_candle(Path(folder))
        read = folder_lib.read_candle if candle else folder_lib.read_torch
        load = candle_tensors.load if candle else safetensors_torch.load_file
        self.model = read(Path(folder))
        tensors = load(self.model.weights)
        self.weights = {name: tensor.float() for name, tensor in tensors.items()}
        self.sample = delays.Sampler(temperature=temperature, top_k=top_k, seed=seed)
        m = self.model
        self.timeline = delays.Timeline(
            m.delays,
            codebooks_out=m.codebooks_out,
            text_vocab=m.text_vocab,
            audio_vocab=m.audio_vocab,
        )
        self._image: tuple[torch.Tensor, torch.Tensor] | None = None
        self.reset()

    def reset(self) -> None:
        """Starts a new conversation about the same image."""
        m = self.model
        D = self.weights["llm.out_norm.alpha"].shape[-1]
        shape = (m.layers, m.heads, m.context, D // m.heads)
        self._keys, self._values = torch.zeros(shape), torch.zeros(shape)
        self.timeline.reset()

    @torch.inference_mode()
    def image(self, pixels: np.ndarray | None) -> None:
        """Shows an image, float32 [1, height, width, 3] in [-1, 1]; None takes it away."""
        if pixels is None:
            self._image = None
            return
        x = _encode_image(self.weights, self.model.encoder, torch.from_numpy(np.asarray(pixels)))
        prefix = "image_prefix."
        if f"{prefix}proj_xa.weight" in self.weights:
            w, b = (self.weights[f"{prefix}proj_xa.{part}"] for part in ("weight", "bias"))
            x = F.linear(x, w, b)
        x = _norm(x, self.weights[f"{prefix}norm_xa.alpha"], *self.model.image_norm)
        w_k, w_v = self._projections()[1].chunk(2)
        k, v = (_heads(F.linear(x, w), self.model.heads) for w in (w_k, w_v))
        self._image = (k, v)

    @torch.inference_mode()
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
        z = _norm(x, self.weights["llm.out_norm.alpha"], "mean_square", 1e-8)
        text_logits = F.linear(z, self.weights["llm.text_linear.weight"]).numpy()
        text_token = self.sample(text_logits) if text is None else int(text)
        audio_tokens, audio_logits = self._speak(z, text_token, audio)
        codes = self.timeline.push(text_token, audio_tokens, np.asarray(user_codes))
        return delays.StepOut(
            text_token=text_token,
            audio_codes=codes,
            text_logits=text_logits,
            audio_logits=audio_logits,
            gate=float(np.mean(gates[-REPORTED_LAYERS:])),
            audio_tokens=audio_tokens,
            gates=np.asarray(gates, np.float32),
            hidden=torch.stack(hidden).numpy(),
        )

    def _embed(self, column: np.ndarray) -> torch.Tensor:
        names = ["llm.text_emb", *(f"audio_emb.{k}" for k in range(len(column) - 1))]
        rows = [self.weights[f"{n}.weight"][i] for n, i in zip(names, column) if i >= 0]
        return sum(rows, torch.zeros(self.weights["llm.out_norm.alpha"].shape[-1]))

    def _layer(self, layer: int, x: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Returns (residual stream [D], mean gate opening)."""
        w, p = self.weights, f"llm.transformer.layers.{layer}."
        y = _norm(x, w[f"{p}norm1.alpha"], "mean_square", 1e-8)
        q, k, v = F.linear(y, w[f"{p}self_attn.in_proj_weight"]).view(3, self.model.heads, -1)
        s, context = self.timeline.step, self.model.context
        q, k = (_rope(part, s, self.model.rope_base) for part in (q, k))
        self._keys[layer, :, s % context], self._values[layer, :, s % context] = k, v
        seen = min(s + 1, context)
        u = _attend(q, self._keys[layer, :, :seen], self._values[layer, :, :seen])
        x = x + F.linear(u, w[f"{p}self_attn.out_proj.weight"])
        gate = 0.0
        if self._image is not None and s in self.model.scope and layer in self.model.looking:
            y, gate = self._look(p, _norm(x, w[f"{p}norm_cross.alpha"], "mean_square", 1e-8))
            x = x + y
        y = _norm(x, w[f"{p}norm2.alpha"], "mean_square", 1e-8)
        return x + _mlp(
            y, w[f"{p}gating.linear_in.weight"], w[f"{p}gating.linear_out.weight"]
        ), gate

    def _look(self, p: str, y: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Returns (gated cross-attention result, mean gate opening)."""
        w = self.weights
        assert self._image is not None
        k, v = self._image
        q = F.linear(y, self._projections()[0]).view(self.model.heads, -1)
        u = F.linear(_attend(q, k, v), w[f"{_SHARED}out_proj.weight"])
        gate = f"{p}cross_attention.gate.alpha"
        match self.model.gate:
            case "none":
                g = torch.ones(())
            case "constant":
                g = self._activate(w[gate].reshape(()))
            case "conditional":
                inner = F.linear(u, w[f"{gate}.0.weight"]).relu()
                bias = w.get(f"{gate}.2.bias")
                logits = F.linear(inner, w[f"{gate}.2.weight"], bias)
                g = self._activate(logits, shift=GATE_SHIFT if bias is None else 0.0)
        alpha = w.get(f"{p}cross_attention.per_layer_alpha", torch.ones(1)).reshape(())
        return u * g * alpha, float(g.mean())

    def _projections(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the shared weights of queries, and of keys and values."""
        fused = self.weights.get(f"{_SHARED}in_proj_weight")
        if fused is not None:
            return fused[: fused.shape[1]], fused[fused.shape[1] :]
        return self.weights[f"{_SHARED}in_proj_weight_q"], self.weights[
            f"{_SHARED}in_proj_weight_kv"
        ]

    def _activate(self, logits: torch.Tensor, *, shift: float = GATE_SHIFT) -> torch.Tensor:
        if self.model.activation == "tanh":
            return logits.tanh()
        return torch.sigmoid(logits - shift)

    def _speak(
        self, z: torch.Tensor, text: int, forced: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (codes [Q], logits [Q, C]) of one frame."""
        w, told = self.weights, self.timeline.told()
        past: Past = []
        said, codes, logits = text, [], []
        for step in range(self.model.codebooks_out):
            table = "depformer_text_emb" if step == 0 else f"depformer_emb.{step - 1}"
            x = F.linear(z, w[f"depformer_in.{step}.weight"]) + w[f"{table}.weight"][said]
            for layer in range(self.model.depth_layers):
                x = self._depth_layer(layer, step, x, past)
            logits.append(F.linear(x, w[f"audio_linears.{step}.weight"]).numpy())
            codes.append(self.sample(logits[-1]) if forced is None else int(forced[step]))
            said = codes[-1] if told[step] == types.UNGENERATED else int(told[step])
        return np.asarray(codes), np.stack(logits)

    def _depth_layer(self, layer: int, step: int, x: torch.Tensor, past: Past) -> torch.Tensor:
        """Returns the residual stream [d]; adds this step's keys and values to the layer's past."""
        w, p, steps = self.weights, f"depformer.layers.{layer}.", self.model.codebooks_out
        y = _norm(x, w[f"{p}norm1.alpha"], *self.model.depth_norm)
        fused = w[f"{p}self_attn.in_proj_weight"].chunk(steps)[step]
        q, k, v = F.linear(y, fused).view(3, self.model.depth_heads, -1)
        k, v = k[:, None], v[:, None]
        if step == 0:
            past.append((k, v))
        else:
            old_k, old_v = past[layer]
            past[layer] = (torch.cat([old_k, k], dim=1), torch.cat([old_v, v], dim=1))
        out = w[f"{p}self_attn.out_proj.weight"].chunk(steps)[step]
        x = x + F.linear(_attend(q, *past[layer]), out)
        y = _norm(x, w[f"{p}norm2.alpha"], *self.model.depth_norm)
        mlp = f"{p}gating.{step}."
        return x + _mlp(y, w[f"{mlp}linear_in.weight"], w[f"{mlp}linear_out.weight"])


def _encode_image(
    w: dict[str, torch.Tensor], encoder: folder_lib.Encoder, pixels: torch.Tensor
) -> torch.Tensor:
    """Returns SigLIP features [S, E] of one image [1, height, width, 3]; reference section 3.2."""
    size = encoder.image_size
    if tuple(pixels.shape) != (1, size, size, 3):
        raise ValueError(
            f"image: expected [1, {size}, {size}, 3], got {list(pixels.shape)}; resize"
        )
    p = "image_prefix.enc.model."
    patches = F.conv2d(
        pixels.permute(0, 3, 1, 2),
        w[f"{p}embeddings.patch_embedding.weight"],
        w[f"{p}embeddings.patch_embedding.bias"],
        stride=encoder.patch,
    )
    x = patches[0].flatten(1).T + w[f"{p}embeddings.position_embedding.weight"]

    def linear(name: str, y: torch.Tensor) -> torch.Tensor:
        return F.linear(y, w[f"{p}{name}.weight"], w[f"{p}{name}.bias"])

    def norm(name: str, y: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(
            y, y.shape[-1:], w[f"{p}{name}.weight"], w[f"{p}{name}.bias"], encoder.eps
        )

    for i in range(encoder.layers):
        layer = f"encoder.layers.{i}."
        y = norm(f"{layer}layer_norm1", x)
        q, k, v = (
            _heads(linear(f"{layer}self_attn.{part}_proj", y), encoder.heads) for part in "qkv"
        )
        u = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        x = x + linear(f"{layer}self_attn.out_proj", u.transpose(0, 1).flatten(1))
        y = linear(f"{layer}mlp.fc1", norm(f"{layer}layer_norm2", x))
        x = x + linear(f"{layer}mlp.fc2", F.gelu(y, approximate="tanh"))
    return norm("post_layernorm", x)


def _norm(
    x: torch.Tensor, alpha: torch.Tensor, kind: folder_lib.NormKind, eps: float
) -> torch.Tensor:
    """Returns x * (alpha * rsqrt(s + eps)); reference section 2.2."""
    variance = kind == "variance"
    s = x.var(dim=-1, keepdim=True) if variance else x.square().mean(dim=-1, keepdim=True)
    return x * (alpha.reshape(-1) * torch.rsqrt(s + eps))


def _rope(x: torch.Tensor, position: int, base: float) -> torch.Tensor:
    """Rotates the pairs (2i, 2i+1) of x [N, H]."""
    H = x.shape[-1]
    angles = position * torch.exp(torch.arange(H // 2) * (-2.0 * math.log(base) / H))
    r, i = x.view(-1, H // 2, 2).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([r * cos - i * sin, r * sin + i * cos], dim=-1).view(-1, H)


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[S, N x H] -> [N, S, H]."""
    return x.view(len(x), heads, -1).transpose(0, 1)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attends from one frame, q [N, H], to keys and values [N, S, H]; returns [N x H]."""
    return F.scaled_dot_product_attention(q[None, :, None], k[None], v[None]).flatten()


def _mlp(x: torch.Tensor, w_in: torch.Tensor, w_out: torch.Tensor) -> torch.Tensor:
    a, b = F.linear(x, w_in).view(2, -1)
    return F.linear(F.silu(a) * b, w_out)
