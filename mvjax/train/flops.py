"""How many floating-point operations a training step needs: an analytic count, no arrays, no compiler.

A product [m, k] x [k, n] is 2 m k n operations. Of each one three things may be asked:

    forward          always
    to the inputs    only where something trained lies before it
    to the weights   only where its own kernel is trained

What a step needs in this sense is `frozen_aware`; a frozen kernel costs 4 per parameter and frame, a trained
one 6. `plain` is what the same step would need with everything trained (6 everywhere). Recomputation in
the backward pass is needed by neither and is counted apart, as `nn/compute.py` tells it for a fused
attention kernel; the last product of a block is never made again, as nothing needs its result.

Not counted: norms, softmax, gates' and losses' elementwise work, embedding lookups, the optimizer. Causal
attention counts the pairs inside its window.
"""

from __future__ import annotations

import dataclasses
import re

from mvjax.config import schema


@dataclasses.dataclass(frozen=True)
class Work:
    """Operations of one part of a step, over the global batch.

    Attributes:
      forward: of the loss.
      inputs: of gradients to the part's inputs, where something trained lies before.
      weights: of gradients to the part's own kernels, where they are trained.
      again: of what the backward pass computes a second time.
    """

    forward: float
    inputs: float = 0.0
    weights: float = 0.0
    again: float = 0.0

    @property
    def needed(self) -> float:
        """Everything but the recomputation."""
        return self.forward + self.inputs + self.weights


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of one step over the global batch; `parts` adds up to the totals."""

    parts: dict[str, Work]

    @property
    def frozen_aware(self) -> float:
        """Forward, gradients that reach an adapter, and the adapters' own."""
        return sum(part.needed for part in self.parts.values())

    @property
    def plain(self) -> float:
        """Three times the forward: 6 per parameter and position, as if everything were trained."""
        return 3 * sum(part.forward for part in self.parts.values())

    @property
    def recompute(self) -> float:
        """What the backward pass computes a second time, under `train.remat`."""
        return sum(part.again for part in self.parts.values())


def frames(data: schema.DataConfig) -> int:
    """Positions of one step: frames of speech rows and tokens of speechless ones."""
    return data.speech_rows * data.speech_frames + data.speechless_rows * data.speechless_tokens


def utilization(needed: float, seconds: float, *, devices: int, peak: float) -> float:
    """Returns needed operations / (seconds x devices x peak operations a second of one device)."""
    return needed / (seconds * devices * peak)


def step_flops(run: schema.Config) -> Flops:
    """Returns the operations of one step, by part."""
    count = _Count(run)
    return Flops(count.image() | count.blocks() | count.heads())


class _Count:
    """The sizes of a run, and the operations that follow from them."""

    def __init__(self, run: schema.Config) -> None:
        m, data = run.model, run.data
        self.run, self.model = run, m
        self.positions = frames(data)
        self.images = data.speech_rows + data.speechless_rows
        self.patches = m.siglip.tokens
        self.pairs = data.speech_rows * _window_pairs(
            data.speech_frames, m.backbone.window
        ) + data.speechless_rows * _window_pairs(data.speechless_tokens, m.backbone.window)

    def trained(self, path: str) -> bool:
        """Whether the parameter at this path is trained."""
        return any(re.fullmatch(pattern, path) for pattern in self.run.train.trained)

    def product(
        self, positions: float | int, parameters: float | int, path: str, *, dx: bool = True
    ) -> Work:
        """Work of kernels with so many parameters, applied at so many positions."""
        one = 2.0 * positions * parameters
        return Work(one, one if dx else 0.0, one if self.trained(path) else 0.0)

    def image(self) -> dict[str, Work]:
        """Encoder, projection, and the keys and values that are made once per image."""
        c, D = self.model.siglip, self.model.backbone.width
        tokens = self.images * self.patches
        encoder = self.product(
            tokens,
            c.layers * (4 * c.width**2 + 2 * c.width * c.hidden) + 3 * c.patch**2 * c.width,
            "image/encoder/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel",
            dx=False,
        )
        attention = 4.0 * c.layers * self.images * self.patches**2 * c.width
        if self.run.data.features:  # made before training
            encoder, attention = Work(0.0), 0.0
        trained = encoder.weights > 0
        encoder = Work(
            encoder.forward + attention,
            encoder.forward + 2 * attention if trained else 0.0,
            encoder.weights,
        )
        share = self.model.cross_attention.share
        copies = self.model.backbone.layers if share == "none" else 1
        where = "backbone/blocks/xa" if share == "none" else "xa"
        project = self.product(tokens, c.width * D, "image/proj/kernel", dx=trained)
        return {
            "image encoder": encoder,
            "image keys and values": add(
                project, self.product(tokens, copies * 2 * D * D, f"{where}/k/kernel")
            ),
        }

    def blocks(self) -> dict[str, Work]:
        """The backbone's layers; the first self-attention has nothing trained before it."""
        c, xa, M = self.model.backbone, self.model.cross_attention, self.positions
        L, D, F = c.layers, c.width, c.hidden
        attn = self.product(M, 4 * D * D, "backbone/blocks/attn/qkv/kernel")
        core = 4.0 * self.pairs * D
        behind = L if attn.weights else L - 1
        where = "xa" if xa.share == "qkv" else "backbone/blocks/xa"
        projected = self.product(L * M, 2 * D * D, f"{where}/q/kernel")
        looked = 4.0 * L * M * self.patches * D
        gate = "gate" if xa.share_gate else "backbone/blocks/gate"
        specs = xa.gate.params(D).items() if xa.gate is not None else ()
        kernels = sum(_matrix(spec.shape) for _, spec in specs)
        parts = {
            "self-attention": Work(
                L * (attn.forward + core),
                behind * (attn.inputs + 2 * core),
                L * attn.weights,
            ),
            "cross-attention": add(projected, Work(looked, 2 * looked)),
            "gates": self.product(L * M, kernels, f"{gate}/up/kernel"),
            "MLP": self.product(L * M, 3 * D * F, "backbone/blocks/mlp/in/kernel"),
        }
        again = {
            "none": {},
            "frozen": {"gates": 1.0},
            "attention": {"gates": 1.0, "MLP": 2 / 3},
            "full": {"gates": 1.0, "MLP": 2 / 3, "self-attention": 1.0, "cross-attention": 1.0},
        }[self.run.train.remat]
        return {
            name: dataclasses.replace(part, again=part.forward * again.get(name, 0.0))
            for name, part in parts.items()
        }

    def heads(self) -> dict[str, Work]:
        """The text head on every position, the depth transformer on speech frames."""
        m, c, data = self.model, self.model.depformer, self.run.data
        D, d, levels = m.backbone.width, c.width, self.run.loss.trained_codebooks
        speech = data.speech_rows * data.speech_frames
        told = levels * (levels + 1) / 2  # causal pairs of the steps of one frame
        ends = self.product(speech, levels * (D * d + d * m.audio_vocab), "depformer/heads/kernel")
        layers = self.product(
            speech, levels * c.layers * (4 * d * d + 3 * d * c.hidden), "depformer/blocks/attn/qkv/kernel"
        )  # fmt: skip
        core = 4.0 * speech * c.layers * told * d
        depth = add(ends, layers, Work(core, 2 * core))
        halves = 4.0 * speech * levels * c.layers * d * c.hidden
        out = halves / 2
        again = {"attention": halves, "full": layers.forward + core - out}
        depth = dataclasses.replace(depth, again=again.get(self.run.train.remat, 0.0))
        text = self.product(self.positions, D * m.text_vocab, "backbone/text_head/kernel")
        return {"text head": text, "depth transformer": depth}


def add(*parts: Work) -> Work:
    """Returns the sum, field by field."""
    return Work(*(sum(values) for values in zip(*map(dataclasses.astuple, parts))))


def _window_pairs(length: int, window: int) -> float:
    """Pairs (q, k) of a sequence with k <= q and q - k < window."""
    inside = min(length, window)
    return inside * (inside + 1) / 2 + (length - inside) * window


def _matrix(shape: tuple[int, ...]) -> int:
    """Parameters of a kernel; a scalar or a vector is no product."""
    size = 1
    for dimension in shape:
        size *= dimension
    return size if len(shape) > 1 else 0
