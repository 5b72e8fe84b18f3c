"""The tensors of `kyuteye_mlx`'s quantized files: reads and writes them.

Upstream quantizes with `nn.quantize`, which takes every linear and embedding of the language model
(heads, gates and the image projection, too), but neither norms nor the image encoder. Each becomes
`weight` (packed codes), `scales` and `biases`; a linear's own `bias` stays. The shared projections of
cross-attention stand under every layer, all but the codes of keys and values. Reference section 4.5.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from mvjax import messages, tree
from mvjax.weights import lazy, quantize

_ENCODER = "img_embedder."
_SHARED = "transformer.layers.{layer}.cross_attention.mha."
_REPEATED = [  # of the projections that all layers share, what a quantized file has in each of them
    f"{module}.{part}"
    for module in ("q_proj", "kv_proj", "out_proj")
    for part in quantize.AffineWeight._fields
    if (module, part) != ("kv_proj", "weight")
]
_COPY = re.compile(
    r"transformer\.layers\.(?P<layer>[1-9]\d*)\.(?P<rest>cross_attention\.mha\.\w+\.\w+)"
)


def quantized(
    tensors: Mapping[str, lazy.LazyTensor], scheme: quantize.AffineScheme, *, layers: int
) -> dict[str, lazy.LazyTensor]:
    """Returns the tensors that upstream's `quantize` saves, quantized when they are read.

    What stays in memory after that is 1/16 of a q8 file, 1/5 of a q4 file, and the codes that it repeats.
    """
    written: dict[str, lazy.LazyTensor] = {}
    first = _SHARED.format(layer=0)
    for name, tensor in tensors.items():
        if len(tensor.shape) != 2 or name.startswith(_ENCODER):
            written[name] = lazy.cast(tensor, ml_dtypes.bfloat16)
            continue
        module = name.removesuffix(".weight")
        matrix = _QuantizedMatrix(tensor, scheme, keeps_codes=name.startswith(first))
        written |= {f"{module}.{part}": lazily for part, lazily in matrix.parts().items()}
    for layer in range(1, layers):
        copies = _SHARED.format(layer=layer)
        written |= {copies + part: written[first + part] for part in _REPEATED}
    return written


class _QuantizedMatrix:
    """A matrix that is quantized, in bfloat16, when codes, scales or biases are read.

    Scales and biases stay in memory after the first read, and the codes if `keeps_codes`.
    """

    def __init__(
        self, tensor: lazy.LazyTensor, scheme: quantize.AffineScheme, *, keeps_codes: bool
    ) -> None:
        self._tensor, self._scheme, self._keeps_codes = tensor, scheme, keeps_codes
        self._made: dict[str, np.ndarray] = {}

    def parts(self) -> dict[str, lazy.LazyTensor]:
        rows, inputs = self._tensor.shape
        words = (rows, inputs // self._scheme.per_word), np.dtype(np.uint32)
        groups = (rows, inputs // self._scheme.group), np.dtype(ml_dtypes.bfloat16)
        return {
            name: lazy.Computed(*kind, functools.partial(self._read, name))
            for name, kind in (("weight", words), ("scales", groups), ("biases", groups))
        }

    def _read(self, name: str, part: lazy.Index) -> np.ndarray:
        if name in self._made:
            return self._made[name][part]
        weight = np.asarray(self._tensor[()]).astype(ml_dtypes.bfloat16, copy=False)
        made = quantize.quantize(weight, self._scheme)._asdict()
        self._made = {n: x for n, x in made.items() if n != "weight" or self._keeps_codes}
        return made[name][part]


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
    return kept | {name: _checked(tensors[name], of, place) for name, of in copies.items()}


def dequantized(
    tensors: dict[str, lazy.LazyTensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: np.dtype | type | None,
    place: str,
) -> dict[str, lazy.LazyTensor]:
    """Returns the tensors with codes, scales and biases as one lazy weight; shapes determine the scheme."""
    plain, problems = dict(tensors), []
    for name in [name for name in tensors if name.endswith(".scales")]:
        module = name.removesuffix(".scales")
        weight, *_ = names = [f"{module}.{part}" for part in quantize.AffineWeight._fields]
        if weight not in shapes:
            continue
        if missing := [part for part in names if part not in tensors]:
            problems += [f"{part}: missing beside {name}" for part in missing]
            continue
        packed = quantize.AffineWeight(*(plain.pop(part) for part in names))
        rows, inputs = shapes[weight]
        scheme = quantize.scheme_of(packed, inputs=inputs)
        if scheme is None or packed.weight.shape[0] != rows:
            got = [list(part.shape) for part in packed]
            problems.append(f"{weight}: expected {[rows, inputs]} quantized, got {got}")
            continue
        kept = np.dtype(packed.scales.dtype if dtype is None else dtype)
        plain[weight] = quantize.dequantized(packed, scheme, kept)
    tree.refuse(problems, f"{place}: cannot dequantize")
    return plain


def _checked(
    tensor: lazy.LazyTensor, copies: Mapping[str, lazy.LazyTensor], place: str
) -> lazy.Computed:
    """Returns a tensor whose copies must be equal to it in every part that is read."""

    def read(part: lazy.Index) -> np.ndarray:
        values = np.asarray(tensor[part])
        if bad := [n for n, copy in copies.items() if not np.array_equal(copy[part], values)]:
            raise ValueError(
                f"{place}: {messages.counted(len(bad), 'tensor is', 'tensors are')} damaged: expected copies"
                " of layer 0's, got"
                f" other values: {bad}. Fetch or make the file again."
            )
        return values

    return lazy.Computed(tuple(tensor.shape), np.dtype(tensor.dtype), read)
