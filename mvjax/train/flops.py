"""Model FLOPs of a training step by analytic count, and the throughput and MFU that follow from a step time.

A matmul [m, k] x [k, n] is 2 m k n FLOPs. A training step may need each of them three times:

    forward             always
    input gradients     only where a trained parameter lies before it
    weight gradients    only where its own kernel is trained

The sum of what is needed is `model_flops`: a frozen kernel costs 4 FLOPs per parameter and frame, a trained
one 6. `all_trained` is the same step with everything trained (6 everywhere, "6N"). Recomputation in the
backward pass (`train.remat`, see `nn/compute.py`) belongs to neither and is counted apart; the last matmul of
a block is never recomputed, since nothing needs its result.

Not counted: norms, softmax, elementwise work of gates and losses, embedding lookups, the optimizer. Causal
attention counts the (query, key) pairs inside its window.
"""

from __future__ import annotations

import dataclasses
import math
import re

from jax.sharding import Mesh

from mvjax.config import schema
from mvjax.train import chips


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Frames and model FLOPs per step, and the peak dense bfloat16 FLOP/s of all devices (for MFU).

    Frames are those of the global batch, text tokens of speechless rows included (one per frame); the peak
    is None if none is published, as for CPUs.
    """

    frames: int
    model_flops: float
    peak_flops: float | None

    def frames_per_second(self, seconds: float) -> float:
        """Returns the throughput at so many seconds per step."""
        return self.frames / seconds

    def mfu(self, seconds: float) -> float | None:
        """Returns the model FLOP utilization, model FLOPs / (seconds per step x peak FLOP/s)."""
        return self.model_flops / (seconds * self.peak_flops) if self.peak_flops else None


@dataclasses.dataclass(frozen=True)
class MatmulFlops:
    """FLOPs of one part of the model in one step, over the global batch; see the module."""

    forward: float
    input_grads: float = 0.0
    weight_grads: float = 0.0
    remat: float = 0.0

    @property
    def needed(self) -> float:
        """All but the recomputation."""
        return self.forward + self.input_grads + self.weight_grads

    def __add__(self, other: MatmulFlops) -> MatmulFlops:
        """Adds field by field."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other))
        return MatmulFlops(*(a + b for a, b in pairs))


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step over the global batch, by part of the model."""

    parts: dict[str, MatmulFlops]

    @property
    def model_flops(self) -> float:
        """FLOPs that are needed; see the module."""
        return sum(part.needed for part in self.parts.values())

    @property
    def all_trained(self) -> float:
        """Three times the forward pass, as if everything were trained."""
        return 3 * sum(part.forward for part in self.parts.values())

    @property
    def remat(self) -> float:
        """FLOPs recomputed in the backward pass under `train.remat`."""
        return sum(part.remat for part in self.parts.values())


def throughput(run: schema.Config, mesh: Mesh) -> Throughput:
    """Returns those of a run on the devices of a mesh."""
    chip = chips.of_device(mesh.devices.flat[0].device_kind)
    peak = chip.peak_flops * mesh.size if chip else None
    return Throughput(frames_per_step(run.data), step_flops(run).model_flops, peak)


def frames_per_step(data: schema.DataConfig) -> int:
    """Returns the frames of a global batch: of speech rows, and tokens of speechless rows."""
    return data.speech_rows * data.speech_frames + data.speechless_rows * data.speechless_tokens


def step_flops(run: schema.Config) -> StepFlops:
    """Returns the FLOPs of one step, by part of the model."""
    count = _Count(run)
    return StepFlops(count.image() | count.blocks() | count.heads())


class _Count:
    """The sizes of a run, and the FLOPs that follow from them."""

    def __init__(self, run: schema.Config) -> None:
        data, window = run.data, run.model.backbone.window
        self.run, self.model, self.frames = run, run.model, frames_per_step(data)
        self.images = data.speech_rows + data.speechless_rows
        self.pairs = self.pairs_within(window)

    def pairs_within(self, window: int) -> float:
        """Pairs of a frame and one that it attends to, itself among them, of all rows."""
        data = self.run.data
        speech = data.speech_rows * _window_pairs(data.speech_frames, window)
        return speech + data.speechless_rows * _window_pairs(data.speechless_tokens, window)

    def matmul(self, positions: int, parameters: int, path: str, *, dx: bool = True) -> MatmulFlops:
        """Counts kernels of so many parameters, applied at so many positions; `dx`: with input gradients.

        The path is that of one of the kernels: whether they are trained is decided by it.
        """
        forward = 2.0 * positions * parameters
        trained = any(re.fullmatch(pattern, path) for pattern in self.run.train.trained)
        return MatmulFlops(forward, forward if dx else 0.0, forward if trained else 0.0)

    def image(self) -> dict[str, MatmulFlops]:
        """The image encoder, the projection, and the keys and values, computed once per image."""
        c, D, width = self.model.siglip, self.model.backbone.width, self.model.image_width
        tokens = self.images * c.tokens
        size = c.layers * (4 * c.width**2 + 2 * c.width * c.hidden) + 3 * c.patch**2 * c.width
        mlp = "image/encoder/Transformer/encoderblock/MlpBlock_0/Dense_0/kernel"
        encoder = self.matmul(tokens, size, mlp, dx=False)
        attention = 4.0 * c.layers * tokens * c.tokens * c.width
        if self.run.data.features:  # computed before training
            encoder, attention = MatmulFlops(0.0), 0.0
        trained = encoder.weight_grads > 0
        grads = encoder.forward + 2 * attention if trained else 0.0
        encoder = MatmulFlops(encoder.forward + attention, grads, encoder.weight_grads)
        share = self.model.cross_attention.share
        copies = len(self.model.cross_attention_layers) if share == "none" else 1
        where = "backbone/blocks/xa" if share == "none" else "xa"
        projected = c.width * width if self.model.projects_image else 0
        projection = self.matmul(tokens, projected, "image/proj/kernel", dx=trained)
        keys_values = self.matmul(tokens, copies * 2 * width * D, f"{where}/k/kernel")
        return {"image encoder": encoder, "image keys and values": projection + keys_values}

    def blocks(self) -> dict[str, MatmulFlops]:
        """The backbone's layers; before the first cross-attention lies no trained parameter."""
        c, xa, T = self.model.backbone, self.model.cross_attention, self.frames
        L, D, F = c.layers, c.width, c.hidden
        qkv_out = self.matmul(T, 4 * D * D, "backbone/blocks/attn/qkv/kernel")
        logits = 4.0 * self.pairs * D
        looks = self.model.cross_attention_layers
        X, before = len(looks), 0 if qkv_out.weight_grads else looks[0]
        with_grads = L if qkv_out.weight_grads else L - 1 - before
        mlp = self.matmul(L * T, 3 * D * F, "backbone/blocks/mlp/in/kernel")
        where = "xa" if xa.share == "qkv" else "backbone/blocks/xa"
        projections = self.matmul(X * T, 2 * D * D, f"{where}/q/kernel")
        local = 0 if xa.gate is None else xa.gate.local_frames  # attended to beside the image
        if local:
            place = "backbone/blocks/xa" if xa.share == "none" else "xa"
            projections += self.matmul(X * T, 2 * D * D, f"{place}/k/kernel")
        looked_at = T * self.model.siglip.tokens + (self.pairs_within(local) if local else 0)
        image_logits = 4.0 * X * looked_at * D
        gate = "gate" if xa.share_gate else "backbone/blocks/gate"
        specs = {} if xa.gate is None else xa.gate.params(D, c.heads)
        shapes = [spec.shape for spec in specs.values()]
        gate_size = sum(math.prod(shape) for shape in shapes if len(shape) > 1)  # matrices only
        parts = {
            "self-attention": MatmulFlops(
                L * (qkv_out.forward + logits),
                with_grads * (qkv_out.input_grads + 2 * logits),
                L * qkv_out.weight_grads,
            ),
            "cross-attention": projections + MatmulFlops(image_logits, 2 * image_logits),
            "gates": self.matmul(X * T, gate_size, f"{gate}/up/kernel"),
            "MLP": dataclasses.replace(mlp, input_grads=(L - before) / L * mlp.input_grads),
        }
        recomputed = {
            "none": {},
            "frozen": {"gates": 1.0},
            "attention": {"gates": 1.0, "MLP": 2 / 3},
            "full": {"gates": 1.0, "MLP": 2 / 3, "self-attention": 1.0, "cross-attention": 1.0},
        }[self.run.train.remat]
        return {
            name: dataclasses.replace(part, remat=part.forward * recomputed.get(name, 0.0))
            for name, part in parts.items()
        }

    def heads(self) -> dict[str, MatmulFlops]:
        """The text head on every frame, the depth transformer on speech frames."""
        m, c, data = self.model, self.model.depformer, self.run.data
        D, d, levels = m.backbone.width, c.width, self.run.loss.trained_codebooks
        speech = data.speech_rows * data.speech_frames
        pairs = levels * (levels + 1) / 2  # causal, of the codebooks of one frame
        ends = self.matmul(speech, levels * (D * d + d * m.audio_vocab), "depformer/heads/kernel")
        layer = 4 * d * d + 3 * d * c.hidden
        layers = self.matmul(speech, levels * c.layers * layer, "depformer/blocks/attn/qkv/kernel")
        logits = 4.0 * speech * c.layers * pairs * d
        mlp_in = 4.0 * speech * levels * c.layers * d * c.hidden
        recomputed = {"attention": mlp_in, "full": layers.forward + logits - mlp_in / 2}
        remat = recomputed.get(self.run.train.remat, 0.0)
        depth = ends + layers + MatmulFlops(logits, 2 * logits, remat=remat)
        text = self.matmul(self.frames, D * m.text_vocab, "backbone/text_head/kernel")
        return {"text head": text, "depth transformer": depth}


def _window_pairs(length: int, window: int) -> float:
    """Returns the pairs (q, k) of a sequence with k <= q and q - k < window."""
    inside = min(length, window)
    return inside * (inside + 1) / 2 + (length - inside) * window
