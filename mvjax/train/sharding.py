"""Sharding of parameters and batches: the mesh and one ordered table of rules.

Mesh axes: `data` (data parallel: parameters replicated, gradients reduced over it), `fsdp` (FSDP: parameters
and optimizer state sharded, each layer all-gathered when it runs) and `tensor` (tensor parallel: heads and
hidden units split, activations reduced over it). Batch rows are split over data and fsdp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mvjax import messages, tree
from mvjax.config import schema
from mvjax.nn import compute

AXES = ("data", "fsdp", "tensor")
_AUTO = (AxisType.Auto,) * 3
ROWS = compute.ROWS

# (path regex, mesh axis of each trailing dimension). Leading dimensions beyond the entries, such as
# the layer axis, are replicated; entries beyond the rank are dropped from the left. A design may lack
# some of these parameters, so unlike other rule tables an unused rule is no error here.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # backbone and depth transformer
    (r".*/attn/qkv/kernel", ("fsdp", None, "tensor", None)),  # D 3 N H
    (r".*/attn/out/kernel", ("tensor", None, "fsdp")),  # N H D
    (r".*/mlp/in/kernel", ("fsdp", None, "tensor")),  # D 2 F
    (r".*/mlp/out/kernel", ("tensor", "fsdp")),  # F D
    (r".*/(text|audio)_emb/embedding", (None, "fsdp")),  # V+1 D; V+1 has few divisors
    (r"backbone/text_head/kernel", ("fsdp", "tensor")),  # D V
    (r"depformer/in/kernel", ("fsdp", "tensor")),  # D d
    (r"depformer/heads/kernel", ("fsdp", "tensor")),  # d C
    # scales of int8 kernels; those of outputs that no tensor axis splits are small
    (r".*/attn/qkv/scale", (None, None, "tensor", None)),  # 1 3 N H
    (r".*/mlp/in/scale", (None, None, "tensor")),  # 1 2 F
    (r"(backbone/text_head|depformer/(in|heads))/scale", (None, "tensor")),  # 1 V, 1 d, 1 C
    # adapters
    (r"(.*/)?xa/[qkv]/kernel", ("fsdp", "tensor", None)),  # D N H
    (r"(.*/)?xa/out/kernel", ("tensor", None, "fsdp")),  # N H D
    (r"(.*/)?gate/.*/kernel", ("fsdp", None)),  # D G, and G D
    (r"image/proj/kernel", (None, "fsdp")),  # E D
    # image encoder (big_vision names)
    (r"image/.*/(query|key|value)/kernel", ("fsdp", "tensor", None)),  # E N H
    (r"image/.*/MultiHeadDotProductAttention_0/out/kernel", ("tensor", None, "fsdp")),  # N H E
    (r"image/.*/Dense_0/kernel", ("fsdp", "tensor")),  # E F
    (r"image/.*/Dense_1/kernel", ("tensor", "fsdp")),  # F E
    (r".*", ()),  # norms, biases, gate scalars, patch and position embeddings: replicated
)

# (path regex, its axes from the slowest to the fastest in a TPU's memory), of frozen kernels
LAYOUTS: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"backbone/blocks/attn/qkv/kernel", (0, 2, 3, 1, 4)),  # L D 3 N H
    (r"backbone/blocks/mlp/in/kernel", (0, 2, 1, 3)),  # L D 2 F
)
_LAID_OUT_ON = "tpu"


def make_mesh(sizes: schema.MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh over `devices` (default: all), with axes data, fsdp, tensor.

    The data axis goes through one slice after the other.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices, or data not to that of slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    data, fsdp, tensor = mesh_shape(sizes, len(devices))
    parts = _slices(sizes, devices, data)
    # jax.make_mesh refuses to split a torus axis (except on v5e), which 8 x 2 on 4 x 4 needs.
    placed = [
        mesh_utils.create_device_mesh(
            (data // len(parts), fsdp, tensor), part, allow_split_physical_axes=True
        )
        for part in parts
    ]
    return Mesh(np.concatenate(placed), AXES, axis_types=_AUTO)


def _slices(sizes: schema.MeshConfig, devices: Sequence[Any], data: int) -> list[list[Any]]:
    """Returns the devices of each slice or node; equal parts of devices that know of none, as CPUs."""
    by_slice: dict[int, list[Any]] = {}
    for device in devices:
        by_slice.setdefault(getattr(device, "slice_index", 0), []).append(device)
    found, gpus = len(by_slice), devices[0].platform == "gpu"
    count = found if sizes.slices == -1 else sizes.slices
    if gpus and sizes.slices == -1 and data % count:
        count = 1  # any axis may go from node to node
    check_slices(data, count)
    if count == found:
        return [by_slice[index] for index in sorted(by_slice)]
    if found > 1 and not (gpus and count == 1):
        raise ValueError(
            f"mesh.slices={count}: the devices are in {found} slices; --set mesh.slices={found}"
        )
    size = len(devices) // count
    return [list(devices[i * size : (i + 1) * size]) for i in range(count)]


def check_slices(data: int, slices: int) -> None:
    """Checks that the data axis of a mesh can go through so many slices; ValueError, with a `--set`."""
    if slices < 1 or data % slices:
        raise ValueError(
            f"mesh: expected a data axis that spans whole slices, a multiple of {max(slices, 1)}, got"
            f" data={data} and slices={slices}; such as --set mesh.data={max(slices, 1)} --set mesh.fsdp=-1"
        )


def mesh_shape(sizes: schema.MeshConfig, devices: int) -> tuple[int, int, int]:
    """Returns the sizes with the -1 filled in; raises as `make_mesh`."""
    shape = [sizes.data, sizes.fsdp, sizes.tensor]
    known = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and devices % known == 0:
        shape[shape.index(-1)] = devices // known
    if -1 in shape or math.prod(shape) != devices:
        asked = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
        raise ValueError(
            f"mesh: expected sizes that multiply to {messages.counted(devices, 'device')}"
            f" (one may be -1), got {asked}"
        )
    return shape[0], shape[1], shape[2]


def abstract_mesh(sizes: schema.MeshConfig) -> AbstractMesh:
    """Returns a mesh without devices; a size of -1 counts as 1."""
    shape = (sizes.data, sizes.fsdp, sizes.tensor)
    return AbstractMesh(tuple(max(size, 1) for size in shape), AXES, axis_types=_AUTO)


def shardings(params: tree.Tree, mesh: Mesh | AbstractMesh) -> dict[str, Any]:
    """Returns the tree of NamedShardings for a tree of arrays or shape structs.

    Raises:
      ValueError: listing every dimension that its mesh axis does not divide.
    """
    flat = tree.flatten(params)
    specs = {path: spec(path, len(leaf.shape)) for path, leaf in flat.items()}
    problems = [
        f"{path}: dimension {axis} of {list(leaf.shape)} is not divisible by mesh axis {name}="
        f"{mesh.shape[name]}"
        for path, leaf in flat.items()
        for axis, name in enumerate(specs[path])
        if name is not None and leaf.shape[axis] % mesh.shape[name]
    ]
    tree.refuse(problems, "sharding: choose other mesh sizes")
    return tree.unflatten({path: NamedSharding(mesh, s) for path, s in specs.items()})


def formats(params: tree.Tree, mesh: Mesh) -> dict[str, Any]:
    """Returns the tree of `shardings` with the layout in memory where a TPU needs another than the usual.

    Two stacks of kernels have an axis of 2 or 3 after the inputs; the TPU's matmuls want it before them, or
    a step begins with a copy of both, 9 GB of 16 in the released sizes.
    """
    placed = tree.flatten(shardings(params, mesh))
    if mesh.devices.flat[0].platform == _LAID_OUT_ON:
        for path, leaf in tree.flatten(params).items():
            order = next((o for rule, o in LAYOUTS if re.fullmatch(rule, path)), None)
            if order is not None and len(order) == len(leaf.shape):
                placed[path] = Format(Layout(order), placed[path])
    return tree.unflatten(placed)


def in_formats(params: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Returns parameters that lie in their `shardings` in their `formats`; what is moved is donated."""
    flat = tree.flatten(params)
    wanted = tree.flatten(formats(params, mesh))
    moved = {
        path: jax.device_put(flat[path], where, donate=True)
        for path, where in wanted.items()
        if isinstance(where, Format)
    }
    return tree.unflatten(flat | moved)


def with_shardings(abstract: Any, placed: Any) -> Any:
    """Returns the ShapeDtypeStructs of a tree of arrays or structs, with these shardings."""

    def struct(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(struct, abstract, placed)


def bytes_per_device(leaves: Any) -> float:
    """Returns the bytes on one device of a tree of arrays or structs with shardings."""
    sizes = [
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(leaves)
    ]
    return float(sum(sizes))


def spec(path: str, rank: int) -> PartitionSpec:
    """Returns the PartitionSpec of one parameter, by the first rule that matches its path."""
    axes = next(axes for pattern, axes in RULES if re.fullmatch(pattern, path))
    axes = axes[max(0, len(axes) - rank) :]
    return PartitionSpec(*[None] * (rank - len(axes)), *axes)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a value that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batch arrays: rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def describe(mesh: Mesh | AbstractMesh) -> str:
    """Returns the mesh as text, such as data=2 x fsdp=4 x tensor=1."""
    return " x ".join(f"{axis}={mesh.shape[axis]}" for axis in AXES)


def check_rows(
    data: schema.DataConfig, mesh: Mesh | AbstractMesh, *, grad_accum_steps: int = 1
) -> None:
    """Checks that the data shards divide both parts of the global batch, and of each micro-batch.

    Raises:
      ValueError: naming each field that does not.
    """
    shards = math.prod(mesh.shape[axis] for axis in ROWS)
    times = f" x train.grad_accum_steps={grad_accum_steps}" if grad_accum_steps > 1 else ""
    counts = {"speech_rows": data.speech_rows, "speechless_rows": data.speechless_rows}
    bad = [
        f"data.{name}: {n} is not divisible by {shards} data shards{times}"
        for name, n in counts.items()
        if n % (shards * grad_accum_steps)
    ]
    if bad:
        raise ValueError(messages.names(bad, between="; ") + "; change the rows or the mesh")


def explain(params: tree.Tree, mesh: Mesh | AbstractMesh, *, trained: tree.Tree) -> str:
    """Returns a table: path, shape, dtype, trained or frozen, spec, bytes per device, and the totals."""
    leaves = tree.flatten(with_shardings(params, shardings(params, mesh)))
    sizes = {path: math.prod(leaf.shape) for path, leaf in leaves.items()}
    chosen = [path for path in tree.flatten(trained) if path in sizes]
    lines = [("parameter", "shape", "dtype", "trained", "spec", "bytes/device")]
    for path, leaf in leaves.items():
        names = ",".join(axis or "-" for axis in leaf.sharding.spec)
        mark, size = "yes" if path in chosen else "", f"{int(bytes_per_device(leaf)):,}"
        lines.append((path, str(list(leaf.shape)), str(leaf.dtype), mark, f"({names})", size))
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = [*[str.ljust] * 5, str.rjust]
    table = ["  ".join(f(c, w) for f, c, w in zip(aligned, line, widths)) for line in lines]
    counts = f"{sum(sizes.values()):,} parameters, {sum(sizes[path] for path in chosen):,} trained"
    total = f"{int(bytes_per_device(leaves)):,} bytes per device on {describe(mesh)}"
    return "\n".join([*table, f"{counts}; {total}"])
