"""An exported torch or candle folder in PyTorch: float32, bfloat16, or weight-only int8 and int4."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from mvjax.runtimes import folder as folder_lib
from mvjax.runtimes import interface, network
from mvjax.runtimes.torch import engine, linears, tensors, triton_kernels
from mvjax.weights import file_names

Dtype = Literal["float32", "bfloat16"]

# Vectors that stay float32.
_EXACT = re.compile(r".*(norm\w*\.weight|gate\.alpha|per_layer_alpha)$")
_VISION = ("img_embedder.", "transformer.image_prefix.")
# Matrices that a frame reads; an image's keys and values are computed once.
_EVERY_FRAME = re.compile(r"(transformer\.layers|text_linear|depformer)\.(?!.*(emb|kv_proj)\.).*")

# Of weights, times rows: products so short are over before a CPU's other cores have begun theirs.
_ONE_CORE_BYTES = 32_000_000

# Of each that is inside `_one_core`: PyTorch's number of threads before the first.
_usual_threads: list[int] = []
_LOCK = threading.Lock()


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """One thread for PyTorch's operators; afterwards as many as before, whoever else is inside meanwhile.

    The number is the process's: a thread that is new to PyTorch finds the 1 of another that is inside.
    """
    with _LOCK:
        usual = _usual_threads[0] if _usual_threads else torch.get_num_threads()
        _usual_threads.append(usual)
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _LOCK:
            _usual_threads.pop()
            torch.set_num_threads(usual)


class TorchModel(network.Network):
    """As `interface.Model`.

    Args:
      folder: written by `mvjax.export.folder`, target "torch" or "candle".
      dtype: of weights, activations and KV cache, but for what is always float32; None: float32 on a CPU,
        bfloat16 on a GPU.
      device: of PyTorch; None: "cuda" where there is one.
      quantize: the weights that a frame reads; the kernels compute in bfloat16.
      round_activations: what enters a product with q8_0 weights, to 8 bits, as upstream's Rust server does on
        CPUs and CUDA; to measure what that costs.
      kv_cache: how it is stored, if not in `dtype`.

    Raises:
      ValueError: if a file or a key is missing or damaged, naming both, or the weights are not q8_0.
    """

    xp, nn = torch, F

    def __init__(
        self,
        folder: Path,
        *,
        dtype: Dtype | None = None,
        device: str | None = None,
        quantize: linears.Quantization | None = None,
        round_activations: bool = False,
        kv_cache: interface.KvCache | None = None,
    ) -> None:
        candle = folder_lib.is_candle(folder)
        config = (folder_lib.read_candle if candle else folder_lib.read_torch)(folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        usual = "float32" if self.device.type == "cpu" else "bfloat16"
        self.activations: torch.dtype = getattr(torch, dtype or usual)
        self.kernels = triton_kernels.loaded(self.device)
        self._quantize: linears.Quantization | None = quantize
        self._layers: dict[str, linears.Linear] = {}
        if round_activations and config.weights.suffix != file_names.GGUF_SUFFIX:
            raise ValueError(f"{config.weights}: round_activations: its weights are not q8_0")
        self._round_activations = round_activations
        self.kv_cache: interface.KvCache | None = kv_cache
        self._stored = config.weights.stat().st_size  # bytes; the file may be gone later
        super().__init__(config, {})
        self.weights: tensors.Tensors
        try:
            with torch.inference_mode():
                self.weights = self._placed(_joined(tensors.load(config), config))
        except KeyError as error:
            raise ValueError(
                f"{config.weights}: tensor {error} of its config is missing; export again"
            ) from error
        self._first_rows = torch.tensor(_first_rows(config), device=self.device)

    @property
    def dtype(self) -> str:
        """What it computes in, and how its weights are quantized."""
        name = str(self.activations).removeprefix("torch.")
        return f"{name}, {self._quantize} weights" if self._quantize else name

    def engine(self, rows: int, *, probes: bool) -> engine.Engine:
        """As `slots.BatchedModel.engine`."""
        dtype = self.activations
        if linears.can_pack(self.device, dtype) and (rows > 1 or dtype != torch.float32):
            with self.threads(rows):
                self._pack(rows)
        return engine.Engine(self, rows, probes=probes)

    @torch.inference_mode()
    def encode_image(self, pixels: np.ndarray) -> network.KeysValues:
        """As `interface.Model.encode_image`."""
        with self.threads():
            return super().encode_image(pixels)

    @contextlib.contextmanager
    def threads(self, rows: int = 1) -> Iterator[None]:
        """Has PyTorch compute for so many rows of a small model on one core of a CPU.

        Others would wait for work, and all of them for the slowest. Entered in the thread that computes.
        """
        if self.device.type != "cpu" or rows * self._stored > _ONE_CORE_BYTES:
            yield
            return
        with _one_core():
            yield

    def _placed(self, loaded: tensors.Tensors) -> tensors.Tensors:
        """Returns the tensors on the device; those that are quantized become layers."""
        placed: tensors.Tensors = {}
        for name in list(loaded):
            tensor, layer = loaded.pop(name), name.removesuffix(".weight")
            if _EXACT.match(name) and not name.startswith(_VISION[0]):
                placed[name] = tensor.to(self.device, torch.float32, copy=True).flatten()
                continue
            if self._quantize and tensor.ndim == 2 and _EVERY_FRAME.match(name):
                bias = placed.get(f"{layer}.bias", loaded.get(f"{layer}.bias"))
                made = linears.quantized(tensor, bias, self._quantize, self.device)
                if made is not None:
                    self._layers[layer] = made
                    continue
            placed[name] = tensor.to(self.device, self.activations, copy=True)
        return placed

    @torch.inference_mode()
    def _pack(self, rows: int) -> None:
        """Packs the matrices that a frame reads, each in place of its plain form."""
        for name in list(self.weights):
            weight, layer = self.weights[name], name.removesuffix(".weight")
            if _EVERY_FRAME.match(name) and layer != name and weight.ndim == 2:
                bias = self.weights.get(f"{layer}.bias")
                self._layers[layer] = linears.Packed(weight, bias, rows)
                del self.weights[name]

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        # matrices with another number of inputs, and the image part, are not stored in blocks
        if self._round_activations and not x.shape[-1] % linears.Q8_0_BLOCK:
            x = x if name.startswith(_VISION) else linears.rounded_to_q8_0(x)
        if (layer := self._layers.get(name)) is not None:
            return layer(x)
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _embed(self, column: torch.Tensor) -> torch.Tensor:
        return self.weights["embs.weight"][column + self._first_rows].sum(1)

    def _rows(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        return self.weights[f"{name}.weight"][ids]

    def _depth_inputs(self, z: torch.Tensor) -> list[torch.Tensor]:
        count = self.config.codebooks_out
        return list(self._linear("depformer.linear_in", z).chunk(count, 1))

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.kernels and q.shape[2] == 1 and k.is_contiguous():  # an image's
            return self.kernels.attend(q[:, :, 0], k, v)
        return F.scaled_dot_product_attention(q, k, v)

    def _norm(
        self,
        name: str,
        x: torch.Tensor,
        kind: folder_lib.NormKind = "mean_square",
        eps: float = 1e-8,
    ) -> torch.Tensor:
        if kind == "variance":
            return super()._norm(name, x, kind, eps)
        weight = self.weights[f"{name}.weight"]
        if self.kernels and x.ndim == 2:
            return self.kernels.rms_norm(x, weight, eps)
        return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)

    def _turn(self, position: torch.Tensor) -> Any:
        turn = super()._turn(position)
        return turn if self.kernels else torch.complex(*turn)

    def _rope(self, x: torch.Tensor, turn: Any) -> torch.Tensor:
        if self.kernels:
            return self.kernels.rope(x, *turn)
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)

    def _gated_silu(self, x: torch.Tensor) -> torch.Tensor:
        return self.kernels.gated_silu(x) if self.kernels else super()._gated_silu(x)

    def _gated_sum(self, x: Any, u: Any, gate: Any, alpha: Any, sees: Any) -> Any:
        if self.kernels is None or self.config.gate == "none":
            return super()._gated_sum(x, u, gate, alpha, sees)
        tanh = self.config.activation == "tanh"
        return self.kernels.gated_sum(x, u, gate[0], sees, alpha, shift=gate[1], tanh=tanh)

    def _layer_norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (self.weights[f"{name}.{part}"] for part in ("weight", "bias"))
        return F.layer_norm(x, weight.shape, weight, bias, self.config.encoder.eps)

    def _gelu(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(x, approximate="tanh")

    def _patches(self, pixels: np.ndarray, kernel: torch.Tensor, size: int) -> torch.Tensor:
        image = torch.from_numpy(np.array(pixels)).to(self.device, self.activations)
        return F.conv2d(image.permute(0, 3, 1, 2), kernel, stride=size).flatten(2).swapaxes(1, 2)

    def _float(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()

    def _as(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return x.to(like.dtype)

    def _largest(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return x.topk(count).values

    def _at(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return x.gather(1, index.long()[:, None])

    def _marked(self, ids: torch.Tensor, size: int) -> torch.Tensor:
        marked = torch.zeros(len(ids), size, dtype=torch.bool, device=ids.device)
        return marked.scatter_(1, ids.long(), True)


def _first_rows(config: folder_lib.ExportedConfig) -> list[int]:
    """Returns where each stream's rows begin in "embs", whose every part ends with zeros."""
    audio = range(len(config.delays) - 1)
    return [0, *(config.text_vocab + 2 + k * (config.audio_vocab + 2) for k in audio)]


def _joined(loaded: tensors.Tensors, config: folder_lib.ExportedConfig) -> tensors.Tensors:
    """Joins what a frame reads at once: embeddings, and the projections into the depth transformer.

    Each embedding gets a row of zeros at its end, which is what the id -1 indexes.
    """
    audio, steps = range(len(config.delays) - 1), range(config.codebooks_out)
    names = ["text_emb.weight", *(f"audio_embs.{k}.weight" for k in audio)]
    loaded["embs.weight"] = torch.cat([F.pad(loaded.pop(name), (0, 0, 0, 1)) for name in names])
    for q in steps:
        name = f"depformer.slices.{q}.emb.weight"
        loaded[name] = F.pad(loaded[name], (0, 0, 0, 1))
    parts = [loaded.pop(f"depformer.slices.{q}.linear_in.weight") for q in steps]
    loaded["depformer.linear_in.weight"] = torch.cat(parts)
    return loaded
