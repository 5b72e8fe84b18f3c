"""One frame through the backbone in PyTorch: KV cache, gated cross-attention to the image."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from mvjax import types
from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import host
from mvjax.runtimes.torch import layers, vision

GATE_SHIFT = 4.0  # of sigmoid gates without a bias of their own; reference section 2.6

KeysValues = tuple[torch.Tensor, torch.Tensor]


class TorchKVCache:
    """Keys and values [L, N, context, H]; a ring, in which frame s lies in slot s % context."""

    def __init__(self, config: folder_lib.ExportedConfig, *, width: int) -> None:
        shape = (config.layers, config.heads, config.context, width // config.heads)
        self._context = config.context
        self._keys, self._values = torch.zeros(shape), torch.zeros(shape)

    def append(self, layer: int, s: int, k: torch.Tensor, v: torch.Tensor) -> KeysValues:
        """Writes frame s over the oldest one; returns the frames in the context [N, seen, H]."""
        slot, seen = s % self._context, min(s + 1, self._context)
        self._keys[layer, :, slot], self._values[layer, :, slot] = k, v
        return self._keys[layer, :, :seen], self._values[layer, :, :seen]


class TorchBackbone:
    """The temporal transformer, a `host.HostBackbone`.

    Args:
      config: of the folder.
      weights: named as in kyuteye_pt's file.
    """

    def __init__(self, config: folder_lib.ExportedConfig, weights: layers.Tensors) -> None:
        self._config, self._w = config, weights
        self._width = weights["llm.out_norm.alpha"].shape[-1]

    def empty_cache(self) -> TorchKVCache:
        """Returns the KV cache before the first frame."""
        return TorchKVCache(self._config, width=self._width)

    @torch.inference_mode()
    def frame(
        self,
        column: np.ndarray,
        *,
        s: int,
        cache: TorchKVCache,
        image: KeysValues | None,
        probes: bool,
    ) -> host.BackboneFrame:
        """As `host.HostBackbone.frame`."""
        x, hidden, gates = self._embed(column), [], []
        for i in range(self._config.layers):
            x, gate = self._layer(i, x, s=s, cache=cache, image=image)
            if probes or i >= self._config.layers - types.REPORTED_LAYERS:
                gates.append(torch.zeros(()) if gate is None else gate.mean())
            if probes:
                hidden.append(x)
        z, logits = self._output(x)
        return host.BackboneFrame(
            z=z,
            text_logits=logits.numpy(),
            gates=torch.stack(gates).numpy(),
            hidden=torch.stack(hidden).numpy() if probes else None,
        )

    def _embed(self, column: np.ndarray) -> torch.Tensor:
        """Returns the sum of the embeddings of ids [K]; -1 adds none."""
        names = ["llm.text_emb", *(f"audio_emb.{k}" for k in range(len(column) - 1))]
        rows = [self._w[f"{n}.weight"][i] for n, i in zip(names, column) if i >= 0]
        return sum(rows, torch.zeros(self._width))

    def _layer(
        self, i: int, x: torch.Tensor, *, s: int, cache: TorchKVCache, image: KeysValues | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns (residual stream [D], gate over channels; None where no image is seen)."""
        c, w, p = self._config, self._w, f"llm.transformer.layers.{i}."
        y = layers.norm(x, w[f"{p}norm1.alpha"], "mean_square", 1e-8)
        q, k, v = F.linear(y, w[f"{p}self_attn.in_proj_weight"]).view(3, c.heads, -1)
        q, k = (layers.rope(part, s, c.rope_base) for part in (q, k))
        u = layers.attend(q, *cache.append(i, s, k, v))
        x = x + F.linear(u, w[f"{p}self_attn.out_proj.weight"])
        gate = None
        if image is not None and s in c.scope and i in c.image_layers:
            y = layers.norm(x, w[f"{p}norm_cross.alpha"], "mean_square", 1e-8)
            y, gate = self._cross_attend(p, y, image)
            x = x + y
        y = layers.norm(x, w[f"{p}norm2.alpha"], "mean_square", 1e-8)
        w_in, w_out = w[f"{p}gating.linear_in.weight"], w[f"{p}gating.linear_out.weight"]
        return x + layers.mlp(y, w_in, w_out), gate

    def _output(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (z [D], text logits [V]) of the last layer's residual stream."""
        z = layers.norm(x, self._w["llm.out_norm.alpha"], "mean_square", 1e-8)
        return z, F.linear(z, self._w["llm.text_linear.weight"])

    def _cross_attend(
        self, p: str, y: torch.Tensor, image: KeysValues
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (gated cross-attention, gate)."""
        w = self._w
        q = F.linear(y, vision.projections(w)[0]).view(self._config.heads, -1)
        u = F.linear(layers.attend(q, *image), w[f"{vision.SHARED}out_proj.weight"])
        g = self._gate(f"{p}cross_attention.gate.alpha", u)
        alpha = w.get(f"{p}cross_attention.per_layer_alpha", torch.ones(1)).reshape(())
        return u * g * alpha, g

    def _gate(self, name: str, u: torch.Tensor) -> torch.Tensor:
        """Returns the gate of u [D], over channels or one for all."""
        w, shift = self._w, GATE_SHIFT
        match self._config.gate:
            case "none":
                return torch.ones(())
            case "constant":
                logits = w[name].reshape(())
            case "conditional":
                bias = w.get(f"{name}.2.bias")
                hidden = F.linear(u, w[f"{name}.0.weight"]).relu()
                logits = F.linear(hidden, w[f"{name}.2.weight"], bias)
                shift = GATE_SHIFT if bias is None else 0.0
        if self._config.activation == "tanh":
            return logits.tanh()
        return torch.sigmoid(logits - shift)
