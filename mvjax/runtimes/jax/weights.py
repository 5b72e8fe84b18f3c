"""The parameters as a step reads them: every layer's, and every depth step's, in matrices of their own.

Training stacks them, and gives them an axis for each meaning. A step that takes a slice of a stack, or merges
axes, copies it first, and so moves all weights several times a frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from mvjax import tree
from mvjax.config import schema
from mvjax.nn import layers, xattn
from mvjax.weights import placement

Matrix = layers.Weight  # [outputs, inputs]; of int8 codes with a scale [outputs, 1]


class Columns(NamedTuple):
    """A matrix as it is stored, for many rows: [inputs, outputs]; a scale is [1, outputs].

    XLA's CPU backend multiplies eight rows by it in two thirds of the time, and transposes nothing.
    """

    kernel: Array
    scale: Array | None


class Block(NamedTuple):
    """One layer of the backbone, or of the depth transformer at one step (then D, F of that)."""

    norm1: Float[Array, "D"]
    qkv: Matrix | Columns  # [3, N H, D]
    out: Matrix | Columns  # [D, N H]
    norm2: Float[Array, "D"]
    mlp_in: Matrix | Columns  # [2, F, D]
    mlp_out: Matrix | Columns  # [D, F]


class Adapter(NamedTuple):
    """Cross-attention of one layer."""

    norm: Float[Array, "D"]
    q: Matrix | Columns  # [N H, D]
    out: Matrix | Columns  # [D, N H]
    k: Matrix | Columns | None  # [N H, D]; of gates with `local_frames` alone, as v
    v: Matrix | Columns | None
    gate: Mapping[str, Array] | None
    alpha: Float[Array, ""] | None


class AdapterPart(NamedTuple):
    """What one layer has for itself of an `Adapter`, or what all layers share; None is not in it."""

    norm: Float[Array, "D"] | None
    q: Matrix | Columns | None
    out: Matrix | Columns | None
    k: Matrix | Columns | None
    v: Matrix | Columns | None
    gate: Mapping[str, Array] | None
    alpha: Float[Array, ""] | None


class Depth(NamedTuple):
    """The depth transformer; by step, then by layer."""

    text_emb: Float[Array, "V+1 d"]
    audio_emb: tuple[Float[Array, "C+1 d"], ...]
    w_in: tuple[Matrix | Columns, ...]  # [d, D]
    blocks: tuple[tuple[Block, ...], ...]
    heads: tuple[Matrix | Columns, ...]  # [C, d]


class Weights(NamedTuple):
    """Everything that a frame runs through; the image encoder does not belong to it."""

    text_emb: Float[Array, "V+1 D"]
    audio_emb: tuple[Float[Array, "C+1 D"], ...]
    blocks: tuple[Block, ...]
    adapters: tuple[
        AdapterPart, ...
    ]  # of `config.cross_attention_layers`, what each has for itself
    shared: AdapterPart  # of all of them: held, and given to a step, once
    out_norm: Float[Array, "D"]
    text_head: Matrix | Columns  # [V, D]
    depth: Depth

    def adapter(self, row: int) -> Adapter:
        """Returns all that the row-th layer with cross-attention has."""
        own = {name: x for name, x in self.adapters[row]._asdict().items() if x is not None}
        return Adapter(**(self.shared._asdict() | own))


def unstack(params: tree.Tree, config: schema.ModelConfig, *, columns: bool = False) -> Weights:
    """Returns the weights of a model's parameters; leaves may be lazy tensors, which are read in parts.

    What the model rounds to `config.dtype` wherever it uses it is rounded here. Matrices are transposed, or
    as `Columns`.
    """
    leaves = _Leaves(params, config, columns)
    levels = range(config.codebooks_out)
    spine, depth = "backbone/blocks", "depformer/blocks"
    return Weights(
        text_emb=leaves.array("backbone/text_emb/embedding"),
        audio_emb=tuple(
            leaves.array("backbone/audio_emb/embedding", k) for k in range(config.codebooks - 1)
        ),
        blocks=tuple(leaves.block(spine, i) for i in range(config.backbone.layers)),
        adapters=tuple(leaves.adapter(i) for i in range(len(config.cross_attention_layers))),
        shared=leaves.adapter(None),
        out_norm=leaves.array("backbone/out_norm/scale"),
        text_head=leaves.matrix("backbone/text_head"),
        depth=Depth(
            text_emb=leaves.array("depformer/text_emb/embedding"),
            audio_emb=tuple(leaves.array("depformer/audio_emb/embedding", q) for q in levels[:-1]),
            w_in=tuple(leaves.matrix("depformer/in", q) for q in levels),
            blocks=tuple(
                tuple(leaves.block(depth, i, q) for i in range(config.depformer.layers))
                for q in levels
            ),
            heads=tuple(leaves.matrix("depformer/heads", q) for q in levels),
        ),
    )


class _Leaves:
    """Parameters by path; numbers after a path index its first axes."""

    def __init__(self, params: tree.Tree, config: schema.ModelConfig, columns: bool) -> None:
        self._flat = {path: placement.as_numpy(leaf) for path, leaf in tree.flatten(params).items()}
        self._config, self._columns = config, columns

    def array(self, path: str, *at: int) -> Array:
        return jnp.asarray(self._part(path, *at))

    def _part(self, path: str, *at: int) -> Any:
        """A NumPy array, of leaves that jax does not hold on a device or trace."""
        leaf = self._flat[path]
        shape = leaf.shape[len(at) :]
        # slices, which is all that lazy tensors take
        part = leaf[(*(slice(i, i + 1) for i in at), *(slice(0, size) for size in shape))]
        part = part.reshape(shape)
        rounded = path.endswith(("kernel", "embedding")) and part.dtype != jnp.int8
        return part.astype(jnp.dtype(self._config.dtype)) if rounded else part

    def matrix(self, path: str, *at: int, inputs: int = 1) -> Matrix | Columns:
        """Returns a kernel's transpose, its first axes, as many as `inputs`, merged, and the others."""

        def merged(name: str) -> Any:
            array = self._part(name, *at)
            return array.reshape(math.prod(array.shape[:inputs]), -1)

        return self._matrix(path, merged)

    def matrices(self, path: str, *at: int) -> Matrix | Columns:
        """Returns the transposes of several kernels in one [D, which, ...].

        Their axis is not merged with the outputs: devices that share the outputs of each (the tensor axis of
        a mesh) would hold no contiguous part of the whole.
        """

        def split(name: str) -> Any:
            array = self._part(name, *at)
            return array.reshape(*array.shape[:2], -1)

        return self._matrix(path, split)

    def _matrix(self, path: str, read: Callable[[str], Any]) -> Matrix | Columns:
        """Of what `read` returns of the kernel and its scale: inputs first."""
        scale = read(f"{path}/scale") if f"{path}/scale" in self._flat else None
        parts = [read(f"{path}/kernel"), scale]
        if not self._columns:
            parts = [None if x is None else x.transpose(*range(1, x.ndim), 0) for x in parts]
        kernel, scale = (None if x is None else jnp.asarray(x) for x in parts)
        assert kernel is not None
        return Columns(kernel, scale) if self._columns else Matrix(kernel, scale)

    def block(self, path: str, layer: int, *step: int) -> Block:
        return Block(
            norm1=self.array(f"{path}/norm1/scale", layer),
            qkv=self.matrices(f"{path}/attn/qkv", layer, *step),
            out=self.matrix(f"{path}/attn/out", layer, *step, inputs=2),
            norm2=self.array(f"{path}/norm2/scale", layer),
            mlp_in=self.matrices(f"{path}/mlp/in", layer, *step),
            mlp_out=self.matrix(f"{path}/mlp/out", layer, *step),
        )

    def adapter(self, row: int | None) -> AdapterPart:
        """What the row-th layer with cross-attention has for itself; None: what all of them share."""
        own, xa = "backbone/blocks/", self._config.cross_attention

        def matrix(name: str, inputs: int = 1) -> Matrix | Columns | None:
            if (name in xattn.shared_names(xa.share)) != (row is None):
                return None
            place, at = ("xa/", ()) if row is None else (f"{own}xa/", (row,))
            return self.matrix(f"{place}{name}", *at, inputs=inputs)

        local = xa.gate is not None and xa.gate.local_frames
        alpha = f"{own}gate_alpha"
        return AdapterPart(
            norm=None if row is None else self.array(f"{own}norm_xa/scale", row),
            q=matrix("q"),
            out=matrix("out", inputs=2),
            k=matrix("k") if local else None,
            v=matrix("v") if local else None,
            gate=None if xa.gate is None else self._gate(row),
            alpha=None if row is None or alpha not in self._flat else self.array(alpha, row),
        )

    def _gate(self, row: int | None) -> dict[str, Array] | None:
        if self._config.cross_attention.share_gate != (row is None):
            return None
        place, at = ("gate/", ()) if row is None else ("backbone/blocks/gate/", (row,))
        # in the dtype that they have: a gate rounds its parameters itself
        return {
            path.removeprefix(place): self.array(path, *at)
            for path in self._flat
            if path.startswith(place)
        }
