"""The smallest parts of the model: embedding lookup, contraction, norm, gated SiLU, rotary positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mvjax import gates, tree, types
from mvjax.config import schema


class Weight(NamedTuple):
    """A kernel and, if it is int8, the scale of each output channel."""

    kernel: Array
    scale: Array | None = None  # float32, the shape of the kernel with 1 for each contracted axis


class Einsum(nn.Module):
    """A contraction with one learned `kernel`; a frozen one may be int8 with a `scale` beside it."""

    shape: tuple[int, ...]  # of the kernel
    fan_in: int  # product of the contracted sizes, for the initializer
    dtype: schema.Dtype = "float32"  # of the result
    flat: bool = False  # see `contract`
    place: Callable[[Array], Array] | None = None  # gives the kernel its sharding where it is used

    def setup(self) -> None:
        """Creates the kernel, truncated normal with standard deviation 1/sqrt(fan_in)."""
        init = nn.initializers.truncated_normal(self.fan_in**-0.5, lower=-3.0, upper=3.0)
        self.kernel = self.param("kernel", init, self.shape)

    def __call__(self, equation: str, x: Array, steps: slice | None = None) -> Array:
        """Returns einsum(equation, x, kernel), with these slices of the kernel's first axis."""
        kernel, scale = self.weight()
        if steps is not None:
            kernel, scale = kernel[steps], None if scale is None else scale[steps]
        return contract(equation, x, Weight(kernel, scale), dtype=self.dtype, flat=self.flat)

    def weight(self) -> Weight:
        """The kernel as it is stored."""
        quantized = self.has_variable("params", "scale")
        kernel = self.kernel if self.place is None else self.place(self.kernel)
        return Weight(kernel, self.get_variable("params", "scale") if quantized else None)


def argmax(x: Float[Array, "*batch n"]) -> Int[Array, "*batch"]:
    """Returns the place of the largest number along the last axis, of equal ones the first.

    XLA's CPU backend computes this in vectors, unlike `jnp.argmax`, which takes twelve times as long.
    """
    places = jnp.arange(x.shape[-1], dtype=jnp.int32)
    largest = x == jnp.max(x, axis=-1, keepdims=True)
    return jnp.min(jnp.where(largest, places, places[-1]), axis=-1)


def contract(
    equation: str, x: Array, weight: Weight, *, dtype: DTypeLike, flat: bool = False
) -> Array:
    """Returns einsum(equation, x, kernel x scale) in `dtype`; int8 codes are multiplied in it, exactly.

    `flat` reshapes to one matmul, [., K] by [K, .]. For the gradient of x XLA's CPU backend otherwise
    transposes a copy of the kernel wherever more than one of its axes is summed over.
    """
    if flat:
        y = _as_matmul(equation, x, weight.kernel, dtype)
    else:
        y = jnp.einsum(equation, x, weight.kernel.astype(dtype))
    if weight.scale is None:
        return y
    # in float32: a scale rounded to bfloat16 would be off by up to 0.2% for the whole channel
    return (y.astype(jnp.float32) * _aligned(weight.scale, equation, y.ndim)).astype(y.dtype)


def _as_matmul(equation: str, x: Array, kernel: Array, dtype: DTypeLike) -> Array:
    """Returns einsum(equation, x, kernel) for the last axes of x and the first of the kernel."""
    left, right, out = equation.replace("->", ",").split(",")
    summed = len(set(right) - set(out))
    assert left.endswith(right[:summed]) and out == left[:-summed] + right[summed:], equation

    def matmul(x: Array, kernel: Array) -> Array:
        matrix = kernel.astype(dtype).reshape(math.prod(kernel.shape[:summed]), -1)
        y = x.reshape(-1, matrix.shape[0]) @ matrix
        return y.reshape(x.shape[:-summed] + kernel.shape[summed:])

    # or a scan over layers would save every layer's matrix, a copy of its kernel, for the backward pass
    return jax.checkpoint(matmul, prevent_cse=False)(x, kernel)


def _aligned(scale: Array, equation: str, rank: int) -> Array:
    """Returns the scale with the axes of the equation's output, 1 where the kernel has none."""
    letters, out = equation.split(",")[1].split("->")
    out = out.removeprefix("...")
    shared = [letter for letter in out if letter in letters]
    contracted = [letter for letter in letters if letter not in shared]
    moved = scale.transpose([letters.index(letter) for letter in shared + contracted])
    sizes = [scale.shape[letters.index(c)] if c in letters else 1 for c in out]
    return moved.reshape([1] * (rank - len(out)) + sizes)


class Embedding(nn.Module):
    """A learned table [rows, width], or a stack of them; id -1 gives exactly zero."""

    shape: tuple[int, ...]
    dtype: schema.Dtype = "float32"  # of the embeddings

    @nn.compact
    def __call__(self, ids: Int[Array, "*batch"], table: int | None = None) -> Array:
        """Looks ids up, in table number `table` of a stack."""
        # standard deviation 1/sqrt(width)
        init = nn.initializers.truncated_normal(self.shape[-1] ** -0.5, lower=-3.0, upper=3.0)
        embedding = self.param("embedding", init, self.shape)
        return lookup(embedding if table is None else embedding[table], ids, dtype=self.dtype)


def lookup(
    table: Float[Array, "rows D"], ids: Int[Array, "*batch"], *, dtype: DTypeLike
) -> Float[Array, "*batch D"]:
    """Returns rows of a table; exactly zero for id -1."""
    rows = jnp.take(table, jnp.maximum(ids, 0), axis=0, mode="clip")
    zeros = jnp.zeros_like(rows)
    return jnp.where((ids == types.ZERO_TOKEN)[..., None], zeros, rows).astype(dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned scale."""

    width: int
    kind: schema.NormKind = "mean_square"
    eps: float = 1e-8

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Returns the normed x in the dtype of x."""
        scale = self.param("scale", nn.initializers.ones, (self.width,))
        return rms_norm(x, scale, kind=self.kind, eps=self.eps)


def rms_norm(
    x: Float[Array, "*batch D"], scale: Float[Array, "D"], *, kind: schema.NormKind, eps: float
) -> Float[Array, "*batch D"]:
    """Returns x * (scale * rsqrt(s + eps)), in float32, as the dtype of x; reference section 2.2.

    s is mean(x^2), or the unbiased variance of x (x itself is not centered).
    """
    y = x.astype(jnp.float32)
    if kind == "variance":
        s = jnp.var(y, axis=-1, keepdims=True, ddof=1)
    else:
        s = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
    alpha = scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
    return (y * (alpha * jax.lax.rsqrt(s + eps))).astype(x.dtype)


def gated_silu(halves: Float[Array, "*batch 2 F"]) -> Float[Array, "*batch F"]:
    """Returns silu(half 0) * half 1."""
    return jax.nn.silu(halves[..., 0, :]) * halves[..., 1, :]


def rope(
    x: Float[Array, "B T N H"], positions: Int[Array, "#B T"], *, base: float, flat: bool = False
) -> Float[Array, "B T N H"]:
    """Rotates pairs (2i, 2i+1) by position * base^(-2i/H), in float32; reference section 2.3.

    `flat` computes the sines first: XLA's CPU backend otherwise does so anew for each row and head.
    """
    B, T, N, H = x.shape
    cos, sin = _cos_sin(positions, H, base)
    if flat:
        cos, sin = jax.lax.optimization_barrier((cos, sin))
    pairs = x.astype(jnp.float32).reshape(B, T, N, H // 2, 2)
    r, i = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([r * cos - i * sin, r * sin + i * cos], axis=-1)
    return turned.reshape(B, T, N, H).astype(x.dtype)


def rope_by_matmul(
    x: Float[Array, "B T N H"], positions: Int[Array, "#B T"], *, base: float
) -> Float[Array, "B T N H"]:
    """Returns `rope`, with neighbors swapped by a matmul: a TPU takes no slices of every second lane.

    The matrix holds one 1 or -1 a column, so the products are exact.
    """
    cos, sin = (jnp.repeat(y, 2, axis=-1) for y in _cos_sin(positions, x.shape[-1], base))
    return _turned(x, cos, sin)


@jax.custom_vjp
def _turned(x: Array, cos: Array, sin: Array) -> Array:
    """Returns x cos + (x with each pair (r, i) as (-i, r)) sin, in float32, as the dtype of x."""
    turn = np.kron(np.eye(x.shape[-1] // 2), [[0, 1], [-1, 0]])
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    how: dict[str, Any] = {"precision": exact, "preferred_element_type": jnp.float32}
    swapped = jnp.einsum("BTNH,HG->BTNG", x, jnp.asarray(turn, x.dtype), **how)
    return (x.astype(jnp.float32) * cos + swapped * sin).astype(x.dtype)


def _turned_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, tuple[Array, Array]]:
    return _turned(x, cos, sin), (cos, sin)


def _turned_backward(angles: tuple[Array, Array], g: Array) -> tuple[Array, None, None]:
    cos, sin = angles  # the gradient is turned back
    return _turned(g, cos, -sin), None, None


_turned.defvjp(_turned_forward, _turned_backward)


def _cos_sin(
    positions: Int[Array, "#B T"], H: int, base: float
) -> tuple[Float[Array, "#B T 1 pairs"], Float[Array, "#B T 1 pairs"]]:
    frequencies = jnp.exp(jnp.arange(H // 2, dtype=jnp.float32) * (-2.0 * math.log(base) / H))
    angles = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None]
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


class GateWeights(nn.Module):
    """The parameters of a gate, at the paths that the gate names."""

    gate: gates.Gate
    width: int
    heads: int

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        """Returns {path: parameter}."""
        specs = tree.unflatten(self.gate.params(self.width, self.heads))
        return tree.flatten({k: self.param(k, _init_specs, spec) for k, spec in specs.items()})


def _init_specs(key: Array, specs: Any) -> Any:
    """Initializes one spec, or a tree of them."""
    if isinstance(specs, gates.ParamSpec):
        return specs.init(key, specs.shape)
    keys = jax.random.split(key, len(specs))
    return {name: _init_specs(k, specs[name]) for name, k in zip(sorted(specs), keys)}
