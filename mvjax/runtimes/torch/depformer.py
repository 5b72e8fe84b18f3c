"""The depth transformer in PyTorch: the audio codes of a frame, one codebook after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from mvjax import types
from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes.torch import layers

Past = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values [n, steps, h] of each layer


class TorchDepformer:
    """A `host.HostDepformer`, with own weights for each codebook; arguments as `backbone.TorchBackbone`."""

    def __init__(self, config: folder_lib.ExportedConfig, weights: layers.Tensors) -> None:
        self._config, self._w = config, weights

    @torch.inference_mode()
    def generate(
        self,
        z: torch.Tensor,
        text: int,
        forced: np.ndarray,
        sample: Callable[[np.ndarray], int],
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `host.HostDepformer.generate`."""
        w, past = self._w, []
        code, codes, logits = text, [], []
        for q, wanted in enumerate(forced.tolist()):
            table = "depformer_text_emb" if q == 0 else f"depformer_emb.{q - 1}"
            x = F.linear(z, w[f"depformer_in.{q}.weight"]) + w[f"{table}.weight"][code]
            for i in range(self._config.depth_layers):
                x = self._layer(i, q, x, past)
            logits.append(F.linear(x, w[f"audio_linears.{q}.weight"]).numpy())
            code = sample(logits[-1]) if wanted == types.UNGENERATED else wanted
            codes.append(code)
        return np.asarray(codes), np.stack(logits)

    def _layer(self, i: int, q: int, x: torch.Tensor, past: Past) -> torch.Tensor:
        """Returns the residual stream [d]; adds this step's keys and values to the layer's past."""
        c, w, p = self._config, self._w, f"depformer.layers.{i}."
        y = layers.norm(x, w[f"{p}norm1.alpha"], *c.depth_norm)
        fused = w[f"{p}self_attn.in_proj_weight"].chunk(c.codebooks_out)[q]
        query, k, v = F.linear(y, fused).view(3, c.depth_heads, -1)
        k, v = k[:, None], v[:, None]
        if q == 0:
            past.append((k, v))
        else:
            past_k, past_v = past[i]
            past[i] = (torch.cat([past_k, k], dim=1), torch.cat([past_v, v], dim=1))
        out = w[f"{p}self_attn.out_proj.weight"].chunk(c.codebooks_out)[q]
        x = x + F.linear(layers.attend(query, *past[i]), out)
        y = layers.norm(x, w[f"{p}norm2.alpha"], *c.depth_norm)
        mlp = f"{p}gating.{q}."
        return x + layers.mlp(y, w[f"{mlp}linear_in.weight"], w[f"{mlp}linear_out.weight"])
