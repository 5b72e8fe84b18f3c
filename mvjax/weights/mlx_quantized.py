"""The tensors of `kyuteye_mlx`'s quantized files: reads and writes them.

Upstream quantizes with `nn.quantize`, which takes every linear and embedding of the language model
(heads, gates and the image projection, too), but neither norms nor the image encoder. Each becomes
`weight` (packed codes), `scales` and `biases`; a linear's own `bias` stays. The shared projections of
cross-attention stand under every layer, all but the codes of keys and values. Reference section 4.5.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from mvjax.weights import lazy, quantize

_ENCODER = "img_embedder."
_SHARED = "transformer.layers.{layer}.cross_attention.mha."
# of the projections that all layers share, the parts that a quantized file repeats in each
_REPEATED = {
    "q_proj": ("weight", "scales", "biases"),
    "kv_proj": ("scales", "biases"),
    "out_proj": ("weight", "scales", "biases"),
}
_COPY = re.compile(
    r"transformer\.layers\.(?P<layer>[1-9]\d*)\.(?P<rest>cross_attention\.mha\.\w+\.\w+)"
)


def quantized(
    tensors: Mapping[str, lazy.LazyTensor], scheme: quantize.AffineScheme, *, layers: int
) -> dict[str, lazy.LazyTensor]:
    """Returns the tensors that upstream's `quantize` saves, quantized when they are read.

    Scales and biases stay in memory after that (1/16 of a q8 file, 1/5 of a q4 file), and so do the codes
    that the file repeats.
    """
    written: dict[str, lazy.LazyTensor] = {}
    first = _SHARED.format(layer=0)
    for name, tensor in tensors.items():
        if len(tensor.shape) != 2 or name.startswith(_ENCODER):
            written[name] = lazy.cast(tensor, ml_dtypes.bfloat16)
            continue
        module = name.removesuffix(".weight")
        matrix = _QuantizedMatrix(tensor, scheme, keeps_codes=name.startswith(first))
        written |= {
            f"{module}.{part}": _QuantizedPart(matrix, part)
            for part in quantize.AffineWeight._fields
        }
    for layer in range(1, layers):
        for module, parts in _REPEATED.items():
            for part in parts:
                copy = f"{_SHARED.format(layer=layer)}{module}.{part}"
                written[copy] = written[f"{first}{module}.{part}"]
    return written


class _QuantizedMatrix:
    """A matrix that is quantized, in bfloat16, when codes, scales or biases are read.

    Args:
      tensor: the matrix.
      scheme: bits and group.
      keeps_codes: keep the codes in memory after the first read; scales and biases are kept always.
    """

    def __init__(
        self, tensor: lazy.LazyTensor, scheme: quantize.AffineScheme, *, keeps_codes: bool
    ) -> None:
        rows, inputs = tensor.shape
        words, groups = (rows, inputs // scheme.per_word), (rows, inputs // scheme.group)
        self.shapes = {"weight": words, "scales": groups, "biases": groups}
        self._tensor, self._scheme = tensor, scheme
        self._kept = quantize.AffineWeight._fields if keeps_codes else ("scales", "biases")
        self._made: dict[str, np.ndarray] = {}

    def part(self, name: str) -> np.ndarray:
        if name in self._made:
            return self._made[name]
        weight = np.asarray(self._tensor[()]).astype(ml_dtypes.bfloat16, copy=False)
        parts = quantize.quantize(weight, self._scheme)._asdict()
        self._made = {kept: parts[kept] for kept in self._kept}
        return parts[name]


@dataclasses.dataclass(frozen=True, eq=False)
class _QuantizedPart:
    """Codes, scales or biases of a matrix."""

    matrix: _QuantizedMatrix
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.matrix.shapes[self.name]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint32 if self.name == "weight" else ml_dtypes.bfloat16)

    def __getitem__(self, index: lazy.Index) -> np.ndarray:
        return self.matrix.part(self.name)[lazy.slices(lazy.box(index, self.shape))]


def without_copies(
    tensors: Mapping[str, lazy.LazyTensor], *, layers: int, place: str
) -> dict[str, lazy.LazyTensor]:
    """Returns the tensors with the shared projections once, under layer 0; the copies are compared to it."""
    kept, copies = dict(tensors), {}
    for name, tensor in tensors.items():
        match = _COPY.fullmatch(name)
        if match is None or int(match["layer"]) >= layers:
            continue
        original = f"transformer.layers.0.{match['rest']}"
        if original in tensors and tensors[original].shape == tensor.shape:
            copies.setdefault(original, {})[name] = kept.pop(name)
    return kept | {name: _CheckedCopies(tensors[name], of, place) for name, of in copies.items()}


def dequantized(
    tensors: dict[str, lazy.LazyTensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: np.dtype | type | None,
    place: str,
) -> dict[str, lazy.LazyTensor]:
    """Returns the tensors with codes, scales and biases as one lazy weight; shapes determine the scheme."""
    plain, problems = dict(tensors), []
    for name in tensors:
        module = name.removesuffix(".scales")
        names = [f"{module}.{part}" for part in quantize.AffineWeight._fields]
        weight = names[0]
        if module == name or weight not in shapes:
            continue
        if missing := [part for part in names if part not in tensors]:
            problems += [f"{part}: missing beside {name}" for part in missing]
            continue
        codes, scales, biases = (plain.pop(part) for part in names)
        rows, inputs = shapes[weight]
        scheme = quantize.scheme_of(codes, scales, biases, inputs=inputs)
        if scheme is None or codes.shape[0] != rows:
            got = [list(part.shape) for part in (codes, scales, biases)]
            problems.append(f"{weight}: expected {[rows, inputs]} quantized, got {got}")
            continue
        kept = scales.dtype if dtype is None else np.dtype(dtype)
        plain[weight] = quantize.LazyAffineWeight(codes, scales, biases, scheme, kept)
    if problems:
        raise ValueError(f"{place}: cannot dequantize:\n  " + "\n  ".join(problems))
    return plain


@dataclasses.dataclass(frozen=True, eq=False)
class _CheckedCopies:
    """A tensor with copies, which must be equal to it in every part that is read."""

    tensor: lazy.LazyTensor
    copies: Mapping[str, lazy.LazyTensor]
    place: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.shape

    @property
    def dtype(self) -> np.dtype:
        return self.tensor.dtype

    def __getitem__(self, index: lazy.Index) -> np.ndarray:
        values = np.asarray(self.tensor[index])
        if bad := [n for n, copy in self.copies.items() if not np.array_equal(copy[index], values)]:
            raise ValueError(
                f"{self.place}: {len(bad)} tensors are damaged: expected copies of layer 0's, got"
                f" other values: {bad}. Fetch or make the file again."
            )
        return values
