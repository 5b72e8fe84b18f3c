"""Opens an export folder with the runtime that reads its layout, alone or with its codec and tokenizer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mvjax import types
from mvjax.codec import interface as codec_interface
from mvjax.config import frozen, talking
from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import interface
from mvjax.runtimes import voice as voice_lib
from mvjax.weights import codecs, file_names, stated

# {layout: the extras that run it}
EXTRAS: dict[folder_lib.Layout, str] = {"torch": "torch", "mlx": "mlx", "candle": "torch,candle"}


class MissingRuntime(ModuleNotFoundError):
    """A package of a folder's runtime is not installed.

    Attributes:
      package: by its import name.
      install: the command that installs it.
    """

    def __init__(self, folder: Path, package: str, install: str) -> None:
        super().__init__(
            f"{folder}: its runtime needs {package!r}: {install}; or take the run that it was exported from,"
            " which runs in JAX"
        )
        self.package, self.install = package, install


@dataclasses.dataclass(frozen=True)
class Speaker:
    """A model that hears and speaks.

    Attributes:
      model: for `model.session` or `model.slots`.
      codec: of the folder.
      tokenizer: a SentencePieceProcessor.
      name: of the folder.
      certificate: the content of `certificate.json`; None without one.
      talk: how to talk to it unless told otherwise.
    """

    model: interface.Model
    codec: codec_interface.Codec
    tokenizer: Any
    name: str
    certificate: dict[str, Any] | None
    talk: talking.TalkConfig = talking.TalkConfig()

    @property
    def verdict(self) -> str | None:
        """That of the certificate: pass, lossy, not run or fail; None without one."""
        return None if self.certificate is None else self.certificate.get("verdict")

    def voice(self) -> voice_lib.Voice:
        """Returns the voice of one conversation; with rustymimi it takes half a second and 0.45 GB."""
        return voice_lib.Voice(self.codec.stream(), self.tokenizer, self.model.sizes)

    def warm_up(self) -> None:
        """Compiles what the codec needs for a frame, in both directions."""
        stream = self.codec.stream()
        stream.decode(stream.encode(np.zeros((1, types.FRAME_SAMPLES), np.float32)))


def open_folder(
    folder: Path,
    *,
    dtype: Literal["float32", "bfloat16"] | None = None,
    quantize: Literal["int8", "int4"] | None = None,
    round_activations: bool = False,
    kv_cache: interface.KvCache | None = None,
) -> interface.Model:
    """Loads a folder that `mvjax export` wrote: PyTorch runs the torch and candle layouts, MLX its own.

    Args:
      folder: as written.
      dtype: as `TorchModel` and `MlxModel` take it.
      quantize: as `TorchModel` takes it; what MLX runs is quantized in its file.
      round_activations: as `TorchModel` takes it.
      kv_cache: how the backbone's KV caches are stored; None: in the dtype of the activations.

    Raises:
      ValueError: if the folder has no such layout, or its files do not fit each other; for a quantization
        that its runtime does not have.
      MissingRuntime: if a package of the runtime is not installed, with the remedy.
    """
    layout = folder_lib.layout(folder)
    try:
        if layout == "mlx":
            if quantize:
                raise ValueError(
                    f"{folder}: MLX runs its files as they are, and was asked for {quantize}: export with"
                    " --quantize q8 or q4"
                )
            from mvjax.runtimes.mlx import model as mlx_model

            return mlx_model.MlxModel(folder, dtype=dtype, kv_cache=kv_cache)
        from mvjax.runtimes.torch import model as torch_model

        return torch_model.TorchModel(
            folder,
            dtype=dtype,
            quantize=quantize,
            round_activations=round_activations,
            kv_cache=kv_cache,
        )
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingRuntime(folder, package, f"pip install 'mvjax[{EXTRAS[layout]}]'") from error


def open_speaker(
    folder: Path, *, model: interface.Model | None = None, minutes: float = 60.0
) -> Speaker:
    """Loads an export folder with its codec and tokenizer.

    Args:
      folder: as for `open_folder`.
      model: of this folder, where another runtime or precision than `open_folder`'s is wanted.
      minutes: how long a conversation may last, see `codecs.open_codec`.

    Raises:
      ValueError, ModuleNotFoundError: as `open_folder`; if codec or tokenizer are missing or do not fit.
    """
    config = folder_lib.read(folder)
    books = max(config.codebooks_out, config.sizes.codebooks_user)
    sizes = codecs.read_sizes(folder) or frozen.MimiConfig(codebooks=books)
    if (sizes.codes, sizes.codebooks) != (config.audio_vocab, books):
        raise ValueError(
            f"{config.codec}: expected {books} codebooks of {config.audio_vocab} codes, got"
            f" {sizes.codebooks} of {sizes.codes} (of {file_names.CODEC_CONFIG}, or else the release's);"
            " export again"
        )
    tokenizer = _tokenizer(config)
    codec = codecs.open_codec(config.codec, sizes=sizes, minutes=minutes)
    return Speaker(
        model=open_folder(folder) if model is None else model,
        codec=codec,
        tokenizer=tokenizer,
        name=folder.resolve().name,
        certificate=_certificate(folder / file_names.CERTIFICATE),
        talk=read_talk(folder),
    )


def read_talk(folder: Path) -> talking.TalkConfig:
    """Returns what a folder's `talk.json` says; without one, what suits Kyutai's models."""
    usual = talking.TalkConfig()
    return stated.read(folder / file_names.TALK, usual) or usual


def _tokenizer(config: folder_lib.ExportedConfig) -> Any:
    import sentencepiece

    path = config.tokenizer
    if not path.is_file():
        raise ValueError(f"{path}: expected a SentencePiece model, found none; export again")
    try:
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path}: no SentencePiece model: {error}; export again") from error
    if tokenizer.vocab_size() < config.text_vocab:
        raise ValueError(
            f"{path}: expected {config.text_vocab} pieces or more, got {tokenizer.vocab_size()}:"
            " it is another model's; export again"
        )
    return tokenizer


def _certificate(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); export again") from error
    if not isinstance(content, dict) or not isinstance(content.get("verdict"), str):
        raise ValueError(f"{path}: damaged (it has no verdict); export again")
    return content
