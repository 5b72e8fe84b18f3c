"""The training step of `bench_step.py` in PyTorch: upstream's own modules, and a twin of ours.

Both take a batch of text rows with the features of one image each, give the mean cross-entropy of the text,
and train cross-attention, gates, their norms and the image projection; the rest is frozen.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[1]
TRAINED = ("cross_attention", "norm_cross", "proj_xa", "norm_xa")


class Upstream(torch.nn.Module):
    """kyuteye_pt's language model, which projects the image's keys and values in every layer.

    Frames of text only: the embeddings of absent audio are left out, as they are in ours. The causal mask is
    passed, since kyuteye_pt has none of its own (reference section 2.4).
    """

    def __init__(self, folder: Path, config: Any, params: dict) -> None:
        super().__init__()
        sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "parity")]
        import test_kyuteye_pt as parity

        gen, embedder = parity.build(config, params, folder)
        self.llm, self.embedder = gen.lm_model.llm, embedder
        _train(self, lambda name: any(part in name for part in TRAINED))
        self.train()

    def forward(self, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Returns logits [B, T, V]."""
        tokens = self.embedder.norm_xa(self.embedder.proj_xa(features))
        T = ids.shape[1]
        causal = torch.ones(T, T, dtype=torch.bool).tril()
        hidden, _ = self.llm(
            inputs_embeds=self.llm.text_emb(ids),
            attention_mask=causal,
            cross_attention_src=tokens,
            return_features=True,
        )
        return self.llm.text_linear(hidden)


class Twin(torch.nn.Module):
    """Our forward pass in PyTorch's own operations: keys and values once an image, fused kernels."""

    def __init__(self, config: Any, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.config = config
        self.names = {name: name.replace(".", "/") for name in tensors}
        for name, tensor in tensors.items():
            self.register_parameter(self.names[name], torch.nn.Parameter(tensor))
        _train(self, lambda name: any(part in name for part in TRAINED))

    def forward(self, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Returns logits [B, T, V]."""
        c, heads = self.config.backbone, self.config.backbone.heads
        x = F.linear(
            features, self._("image_prefix.proj_xa.weight"), self._("image_prefix.proj_xa.bias")
        )
        s = x.var(-1, keepdim=True) + self.config.cross_attention.image_norm_eps
        x = x * (torch.rsqrt(s) * self._("image_prefix.norm_xa.alpha").flatten())
        w_q, w_k, w_v = self._("llm.transformer.layers.0.cross_attention.mha.in_proj_weight").chunk(
            3
        )
        w_out = self._("llm.transformer.layers.0.cross_attention.mha.out_proj.weight")
        k, v = _heads(F.linear(x, w_k), heads), _heads(F.linear(x, w_v), heads)
        x = F.embedding(ids, self._("llm.text_emb.weight"))
        cos, sin = _angles(x.shape[1], c.width // heads, c.rope_base)
        for i in range(c.layers):
            layer = f"llm.transformer.layers.{i}"
            qkv = F.linear(
                self._norm(x, f"{layer}.norm1"), self._(f"{layer}.self_attn.in_proj_weight")
            )
            a, b, u = (_heads(part, heads) for part in qkv.chunk(3, -1))
            a, b = _rope(a, cos, sin), _rope(b, cos, sin)
            u = _flat(F.scaled_dot_product_attention(a, b, u, is_causal=True))
            x = x + F.linear(u, self._(f"{layer}.self_attn.out_proj.weight"))
            q = _heads(F.linear(self._norm(x, f"{layer}.norm_cross"), w_q), heads)
            u = F.linear(_flat(F.scaled_dot_product_attention(q, k, v)), w_out)
            gate = F.linear(
                F.relu(F.linear(u, self._(f"{layer}.cross_attention.gate.alpha.0.weight"))),
                self._(f"{layer}.cross_attention.gate.alpha.2.weight"),
            )
            x = x + u * torch.sigmoid(gate - 4)
            y = F.linear(
                self._norm(x, f"{layer}.norm2"), self._(f"{layer}.gating.linear_in.weight")
            )
            a, b = y.chunk(2, -1)
            x = x + F.linear(F.silu(a) * b, self._(f"{layer}.gating.linear_out.weight"))
        return F.linear(self._norm(x, "llm.out_norm"), self._("llm.text_linear.weight"))

    def _(self, name: str) -> torch.Tensor:
        return getattr(self, self.names[name])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight = self._(f"{name}.alpha").flatten()
        return F.rms_norm(x, weight.shape, weight, self.config.backbone.norm_eps)


class Trainer:
    """Steps of AdamW on what is trained, gradients clipped by their global norm.

    Args:
      model: Upstream or Twin.
      batch: {"inputs", "targets", "features"} as numpy arrays.
      optim: the config of our own optimizer.
      compiled: by torch.compile.
    """

    def __init__(self, model: torch.nn.Module, batch: dict, optim: Any, *, compiled: bool) -> None:
        self.batch = {name: torch.from_numpy(array) for name, array in batch.items()}
        self.forward = torch.compile(model) if compiled else model
        self.clip = optim.clip_norm
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.trained = [p for _, p in named]
        matrices = [p for n, p in named if p.ndim == 2]
        others = [p for n, p in named if p.ndim != 2]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=optim.learning_rate,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
        )

    def step(self) -> tuple[float, float]:
        """Trains once; returns (loss, norm of the gradient) of before."""
        self.optimizer.zero_grad()
        logits = self.forward(self.batch["inputs"], self.batch["features"])
        loss = F.cross_entropy(logits.flatten(0, 1), self.batch["targets"].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.optimizer.step()
        return loss.item(), norm.item()


def _train(model: torch.nn.Module, chosen) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(chosen(name))


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(2)


def _angles(frames: int, width: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    rates = base ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(frames)[:, None] * rates
    return angles.cos(), angles.sin()


def _rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
