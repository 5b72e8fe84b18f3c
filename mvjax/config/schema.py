"""The config of a run as frozen dataclasses; experiments (`experiments/*.py`) hold values.

The defaults are those of the released MoshiVis 7B (reference section 1), as far as they are published; "ours"
marks a choice that is in no source. `FrozenFiles` and `MimiConfig` are in `config/frozen.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from mvjax import files, gates, scopes
from mvjax.config import renamed
from mvjax.config.evaluating import EvalConfig
from mvjax.config.frozen import FrozenFiles, MimiConfig
from mvjax.config.limits import LimitsConfig
from mvjax.config.talking import TalkConfig

NormKind = Literal["mean_square", "variance"]
Dtype = Literal["float32", "bfloat16"]
# what of a block is saved for the backward pass, from most memory to most recomputation: nn/compute.py
Remat = Literal["none", "frozen", "attention", "full"]
AttentionKernel = Literal["auto", "plain", "splash", "cudnn"]
FrozenDtype = Literal["as stored", "bfloat16", "int8"]
Tracker = Literal["tensorboard", "wandb"]


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """The temporal transformer (Helium-7B shape)."""

    width: int = 4096  # D
    layers: int = 32  # L
    heads: int = 32  # N; H = width / heads
    hidden: int = 11264  # F, per half of the gated SiLU
    context: int = 3000  # attention window in frames (240 s)
    # the window counts the frame itself; False: it comes on top, 3001 keys (reference section 2.4)
    context_has_self: bool = True
    rope_base: float = 10_000.0
    norm_eps: float = 1e-8

    @property
    def window(self) -> int:
        """Keys that a query attends to, its own among them."""
        return self.context if self.context_has_self else self.context + 1


@dataclasses.dataclass(frozen=True)
class DepformerConfig:
    """The depth transformer: one step per generated codebook, own weights for each step."""

    width: int = 1024
    layers: int = 6
    heads: int = 16
    hidden: int = 2816
    norm: NormKind = "mean_square"  # as the frozen weights were trained (reference section 2.2)
    norm_eps: float = 1e-8


@renamed.reads_old_keywords("model.siglip")
@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """The SigLIP image encoder; its parameter tree is big_vision's, with scanned blocks."""

    width: int = 1152  # E
    layers: int = 27
    heads: int = 16
    hidden: int = 4304
    patch: int = 14  # pixels
    image_size: int = 448  # pixels
    final_norm_eps: float = 1e-6  # as trained; kyuteye_mlx has 1e-5 (reference section 3.2)

    @property
    def tokens(self) -> int:
        """Patches of an image, S."""
        return (self.image_size // self.patch) ** 2


@renamed.reads_old_keywords("model.cross_attention")
@dataclasses.dataclass(frozen=True)
class CrossAttentionConfig:
    """The trained adapters between image tokens and the backbone."""

    gate: gates.Gate | None = gates.Conditional(hidden=512)  # None: no gate, g = 1
    # projections that all layers share (paper, table 4); the output projection goes with q
    share: Literal["qkv", "kv", "none"] = "qkv"
    # one gate for all layers; with share="qkv" every layer also learns a scalar, gate_alpha
    share_gate: bool = False
    dim: int | None = None  # width of image tokens; None: the backbone's (kyuteye_pt: xa_dim)
    # indices of the layers with cross-attention, from 0; (): all (kyuteye_pt: xa_layers)
    layers: tuple[int, ...] = ()
    scope: scopes.Scope = scopes.Scope()  # frames that may see the image (reference section 2.7)
    # RMS norm of image tokens, as the released adapters were trained (reference section 2.2)
    image_norm: NormKind = "variance"
    image_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        """Checks the indices of the layers."""
        if self.layers != tuple(sorted({layer for layer in self.layers if layer >= 0})):
            raise ValueError(
                f"layers: expected different numbers from 0 on, in rising order, got {self.layers}"
            )


@renamed.reads_old_keywords("model.stream")
@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """The first frames of a conversation; aligned as in training by default (reference section 5)."""

    # at call 0 the delayed levels are teacher-forced with the initial id; False: sampled (5.3)
    first_step_forcing: bool = True
    # call s gets the user's codes of frame s, not s - 1, and frame 0 is dropped (5.2)
    user_early: bool = False
    # how a stream that is absent throughout starts in the training form, such as audio in text-only rows:
    # with its initial id, as `LMModel.forward` has it (7.1), or with nothing
    absent_start: Literal["initial", "nothing"] = "initial"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and vocabulary of the whole model; the tiny one and the 8.3 B one are the same code.

    `config.upstream.imitate` sets the fields in which the released runtimes differ.
    """

    backbone: BackboneConfig = BackboneConfig()
    depformer: DepformerConfig = DepformerConfig()
    siglip: SiglipConfig = SiglipConfig()
    cross_attention: CrossAttentionConfig = CrossAttentionConfig()
    stream: StreamConfig = StreamConfig()
    text_vocab: int = 32_000  # V; row V of the embedding is the initial token
    audio_vocab: int = 2048  # C; row C of each embedding is the initial and padding token
    codebooks_out: int = 8  # Q, generated: the assistant's
    # in frames, of every stream: text, assistant, user
    delays: tuple[int, ...] = (0, *(0, 1, 1, 1, 1, 1, 1, 1) * 2)
    text_pad: int = 3  # PAD: no new text in this frame
    text_epad: int = 0  # EPAD: the frame before a word
    dtype: Dtype = "float32"  # of activations and matmuls

    def __post_init__(self) -> None:
        """Checks that the layers with cross-attention exist."""
        layers = self.cross_attention.layers
        if layers and layers[-1] >= self.backbone.layers:
            raise ValueError(
                f"cross_attention.layers: expected numbers below backbone.layers ="
                f" {self.backbone.layers}, got {layers}"
            )

    @property
    def cross_attention_layers(self) -> tuple[int, ...]:
        """The layers with cross-attention to the image, in rising order."""
        return self.cross_attention.layers or tuple(range(self.backbone.layers))

    @property
    def image_width(self) -> int:
        """Width of the image tokens that keys and values are made of."""
        return self.cross_attention.dim or self.backbone.width

    @property
    def projects_image(self) -> bool:
        """Whether image features go through a linear layer: unless tokens are as wide.

        Source: kyuteye/models/image_projection.py, `ImageProjection.init_proj_module`.
        """
        return self.image_width != self.siglip.width

    @property
    def codebooks(self) -> int:
        """K: text, the assistant's and the user's codebooks."""
        return len(self.delays)


@dataclasses.dataclass(frozen=True)
class Source:
    """One dataset of the mixture: records below `data.root` and its sampling weight."""

    name: str  # `NAME.json` below the root
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The mixture; a batch is speech_rows + speechless_rows rows, the same at every step."""

    root: str = "data"  # folder of records
    # writes the records if `root` is empty; None: they exist
    prepare: Callable[[Path], None] | None = None
    speech: tuple[Source, ...] = ()
    speechless: tuple[Source, ...] = ()
    small_talk: tuple[Source, ...] = ()  # unrelated dialogues for context switching
    speech_rows: int = 16  # of the global batch
    speechless_rows: int = 48  # text-only rows of the global batch
    # steps from one with speech rows to the next, for shares below a row a step (ours)
    speech_every: int = 1
    speech_frames: int = 1250  # T of the speech part
    speechless_tokens: int = 128  # T of the speechless part
    p_concat: float = 0.5  # probability of small talk before and after (paper, figure 5)
    # whether frames of small talk see the row's image; absent: no cross-attention in them (ours)
    small_talk_image: Literal["present", "absent"] = "present"
    # whether a word's tokens begin with a space; False for Japanese and other scripts without spaces
    word_spaces: bool = True
    bad_record_budget: int = 0  # records that may be skipped before training stops
    limits: LimitsConfig = LimitsConfig()
    # read image features that `mvjax data features` wrote; False: the step encodes the images
    features: bool = False
    workers: int = 0  # prefetch threads; 0: batches are made in the training thread

    def __post_init__(self) -> None:
        """Checks that the root is a path on this machine, and the share of speech."""
        files.local(self.root)
        if self.speech_every < 1:
            raise ValueError(f"speech_every: expected at least 1, got {self.speech_every}")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Loss weights (reference section 7.1); the audio loss is normalized over all its levels together."""

    text_padding_weight: float = 0.5  # of PAD and EPAD targets
    semantic_weight: float = 100.0  # of codebook 0; acoustic codebooks weigh 1
    trained_codebooks: int = 2  # with a loss: the semantic and the first acoustic (paper, figure 3)
    text_weight: float = 1.0  # of the text loss, in speech and speechless rows alike (ours)
    # what the text loss is a mean over: targets, so that a row counts by the length of its answers, as
    # moshi-finetune; or rows, so that an answer of one word counts as much as a long caption (ours)
    text_mean_over: Literal["targets", "rows"] = "targets"
    audio_weight: float = 1.0  # of the audio loss (ours)


@renamed.reads_old_keywords("optim")
@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW, linear warmup and cosine decay. The paper states none of these: all values are ours."""

    learning_rate: float = 1e-4  # peak
    warmup_steps: int = 1000
    final_lr_fraction: float = 0.1  # learning rate of the last step / peak
    betas: tuple[float, float] = (0.9, 0.95)  # as Moshi
    eps: float = 1e-8
    weight_decay: float = 0.1  # matrices only
    clip_norm: float = 1.0  # of the global gradient norm
    spike_factor: float | None = None  # skip losses above this x the running median; None: never
    spike_window: int = 64  # steps of the running median
    # decay a step of an exponential moving average of the adapters, used by eval and export; None: none
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        """Checks the decay."""
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(
                f"optim.ema_decay: expected a decay between 0 and 1, or none, got {self.ema_decay}"
            )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1: all that are left."""

    data: int = -1  # batch rows are sharded, parameters replicated
    fsdp: int = 1  # batch rows and parameters are sharded
    tensor: int = 1  # attention heads, MLP hidden units and vocabulary are sharded
    # TPU slices, or GPU nodes, that the data axis spans: gradients alone take the network between them;
    # -1: as the devices say, and GPU nodes only if they divide the data axis
    slices: int = -1


@renamed.reads_old_keywords("train")
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: int = 50_000
    seed: int = 0
    log_every: int = 10  # steps
    trackers: tuple[Tracker, ...] = ("tensorboard",)  # that get what metrics.jsonl does
    checkpoint_every: int = 1000  # steps
    checkpoint_minutes: float | None = 30.0  # and so long after the last; None: by steps only
    keep_checkpoints: int = 2
    max_failed_saves: int = 3  # in a row, as on a full disk, before the run stops (ours)
    max_skipped: int = 10  # bad batches in a row, not finite or spikes, before it stops (ours)
    watchdog_seconds: float = 300.0  # log what the run is blocked on after so long (ours)
    watchdog_stacks: bool = False  # log the stack of every thread, too
    trained: tuple[str, ...] = (  # regexes over parameter paths: the adapters; the rest is frozen
        "(xa|gate|image/(proj|norm)|backbone/blocks/(xa|gate|norm_xa|gate_alpha))(/.*)?",
    )
    remat: Remat = "full"
    attention: AttentionKernel = "auto"  # splash on TPU, cuDNN on GPU, else plain einsums
    # int8: matrices of backbone and depth transformer, with a scale a channel; the rest bfloat16
    frozen_dtype: FrozenDtype = "as stored"
    grad_accum_steps: int = 1  # gradient accumulation: micro-batches a step (memory only)
    # frames a row whose text logits are computed at a time, fused with the cross-entropy (memory only)
    loss_chunk: int = 128

    def __post_init__(self) -> None:
        """Checks that counts are positive."""
        counts = "log_every checkpoint_every keep_checkpoints max_failed_saves max_skipped"
        names = f"{counts} grad_accum_steps loss_chunk".split()
        low = {name: getattr(self, name) for name in names if getattr(self, name) < 1}
        if low:
            raise ValueError(f"train: expected at least 1, got {low}")
        for name in ("watchdog_seconds", "checkpoint_minutes"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"train.{name}: expected above 0, got {value}")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    frozen: FrozenFiles
    model: ModelConfig = ModelConfig()
    codec: MimiConfig = MimiConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    talk: TalkConfig = TalkConfig()
    evals: tuple[EvalConfig, ...] = ()  # while it trains
