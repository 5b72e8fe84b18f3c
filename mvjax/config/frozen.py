"""Configs of frozen parts: the files of their weights, and the sizes of the Mimi codec."""

from __future__ import annotations

import dataclasses
import math

from mvjax.config import renamed

MIMI_STEPS = 2  # of Mimi's transformers in a frame


@renamed.reads_old_keywords("frozen")
@dataclasses.dataclass(frozen=True)
class FrozenFiles:
    """Locations of the frozen weights (read by `files.py`).

    A path, `package:NAME/FILE` for files shipped in a package, or `hf://OWNER/NAME[@REVISION][/FILE]`.
    """

    moshi: str  # Kyutai base Moshi safetensors, or the folder or repository that holds them
    siglip: str  # big_vision npz (`FILE.npz:img` for a sub-tree), or Hugging Face safetensors
    # Kyutai Mimi safetensors, SentencePiece model; "": the file beside Moshi that its config.json names
    codec: str = ""
    tokenizer: str = ""
    moshi_lora: str | None = None  # moshi-finetune's lora.safetensors, merged into Moshi
    lora_scaling: float | None = None  # None: that of the config.json beside it


@dataclasses.dataclass(frozen=True)
class MimiConfig:
    """The Mimi codec (reference section 6)."""

    filters: int = 64  # channels after the first convolution; doubles at each stride
    # strides of the decoder; product x MIMI_STEPS = 1920 samples a frame
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    latent: int = 512
    layers: int = 8  # of each of the two transformers
    heads: int = 8
    hidden: int = 2048
    context: int = 250  # attention window in transformer steps (25 Hz)
    # the window counts the step itself; False: it comes on top, as in rustymimi
    context_has_self: bool = True
    codes: int = 2048  # C
    code_width: int = 256
    codebooks: int = 8  # used, of which the first is semantic
    stored_codebooks: int = 32  # in the file

    @property
    def window(self) -> int:
        """Transformer steps that a query attends to, its own among them."""
        return self.context if self.context_has_self else self.context + 1

    @property
    def frame_samples(self) -> int:
        """Audio samples of a frame: 1920 for every real configuration."""
        return MIMI_STEPS * math.prod(self.ratios)
