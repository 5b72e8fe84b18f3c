"""Cost of one HLO instruction: FLOPs of matmuls and attention kernels, and HBM traffic."""

from __future__ import annotations

import functools
import math
import re

import numpy as np

from mvjax.plan import hlo

COLLECTIVES = {
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
}  # fmt: skip
_MOVES = {
    "copy", "copy-start", "slice", "slice-start", "dynamic-slice", "dynamic-update-slice", "transpose",
    "concatenate", "pad", "gather", "scatter", "reshape",
}  # fmt: skip
_NAMES = {"parameter", "constant", "bitcast", "broadcast", "tuple"}
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": -1}  # the operand that is written into the first
_VIEWS = {"bitcast", "reshape", "convert", "copy", "transpose"}
_SPLASH = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}  # matmuls per block
_KERNEL = "tpu_custom_call"  # a Pallas kernel
_LIBRARY = 'custom_call_target="__cu'  # a kernel of cuBLAS or cuDNN, which may have a workspace
# begins, continues or ends a collective spread over fusions; what that moves is counted with the collective
_ASYNC = 'custom_call_target="AsyncCollective'
_CUDNN_ATTENTION = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}  # matmuls


def matmul_flops(computation: hlo.Computation, instruction: hlo.Instruction) -> float:
    """Returns 2 x multiply-adds of a dot or convolution, 0 for anything else."""
    if instruction.opcode == "dot":
        left = computation.operand_shapes(instruction)[0]
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        contracted = [left.dims[int(a)] for a in (axes[1] if axes else "").split(",") if a]
        return 2.0 * instruction.shapes[0].size * math.prod(contracted)
    if instruction.opcode == "convolution":
        left, right = computation.operand_shapes(instruction)[:2]
        out = instruction.shapes[0]
        return _convolution_flops(left.dims, right.dims, out.dims, instruction.attributes)
    return 0.0


def _convolution_flops(
    left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...], attributes: str
) -> float:
    """Counts only taps that fall on values: XLA writes batched matmuls as dilated convolutions."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels, attributes
    of_left, of_right, of_out = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in (window[1] if window else "").split())
    taps = 1.0
    for axis in range(len(of_left) - 2):
        one = {name: value.split("x")[axis] for name, value in fields.items()}
        label, low = str(axis), int(one.get("pad", "0_0").split("_")[0])
        sizes = left[of_left.index(label)], right[of_right.index(label)], out[of_out.index(label)]
        dilations = (int(one.get(f"{side}_dilate", 1)) for side in ("lhs", "rhs"))
        taps *= _valid_taps(*sizes, int(one.get("stride", 1)), low, *dilations)
    divided = re.search(r"batch_group_count=(\d+)", attributes)
    rows = left[of_left.index("b")] / (int(divided[1]) if divided else 1)
    features = right[of_right.index("i")]  # already divided by feature groups
    return 2.0 * taps * rows * features * out[of_out.index("f")]


@functools.lru_cache(maxsize=4096)
def _valid_taps(
    size: int, kernel: int, out: int, stride: int, low: int, dilate: int, kernel_dilate: int
) -> int:
    """Returns how many pairs (output o, tap k) of one axis meet a value, not padding or a hole of dilation.

    They meet position o stride - low + k kernel_dilate; every `dilate`-th one is a value.
    """
    starts = np.arange(out) * stride - low
    end = (size - 1) * dilate
    if kernel_dilate > 1:  # rare, and then small
        at = starts[:, None] + np.arange(kernel)[None, :] * kernel_dilate
        return int(((at >= 0) & (at <= end) & (at % dilate == 0)).sum())
    first, last = np.maximum(0, -starts), np.minimum(kernel - 1, end - starts)
    taps = (last + starts) // dilate - (first - 1 + starts) // dilate
    return int(np.where(last >= first, taps, 0).sum())


def kernel_kind(module: hlo.Module, instruction: hlo.Instruction, flops: float) -> str:
    """Returns what kind of kernel an instruction is, as a plan lists them."""
    opcode, attributes = instruction.opcode, instruction.attributes
    if opcode == "custom-call":
        if "fmhaSoftmax" in attributes or "splash" in instruction.name:
            return "attention kernels"
        if _LIBRARY in attributes:
            return "cuBLAS, cuDNN" if flops else "other"
    if flops:
        return "Triton matmuls" if '"__triton' in attributes else "matmuls"
    if opcode == "fusion":
        body = module.called(instruction).instructions.values()
        arrays = [one for one in body if any(shape.dims for shape in one.shapes)]
        moves = all(one.opcode in _MOVES or one.opcode in _NAMES for one in arrays)
    else:
        moves = opcode in _MOVES
    return "copies" if moves else "elementwise, reductions"


def library_flops(computation: hlo.Computation, instruction: hlo.Instruction) -> float:
    """Returns the FLOPs of a kernel of cuBLAS or cuDNN: its config says what it multiplies.

    Of attention under a mask, those of the pairs inside it.
    """
    attributes, inputs = instruction.attributes, computation.operand_shapes(instruction)
    name = re.search(r'custom_call_target="([^"]*)"', attributes)
    target = name[1] if name else ""
    if target in _CUDNN_ATTENTION:
        sizes = _json_ints(attributes.partition("intermediate_tensor_shape")[2], "dimensions")
        window = re.search(r'"sliding_window_length": ?(\d+)', attributes)
        pairs = float(sizes[-2] * sizes[-1])
        if re.search(r'"mask_type": ?"(PADDING_)?CAUSAL"', attributes):
            width = int(window[1] if window else 0) or sizes[-1]
            pairs = float(sum(min(n + 1, width) for n in range(sizes[-2])))
        multiply_adds = math.prod(sizes[:-2]) * pairs * inputs[0].dims[-1]
        return 2.0 * _CUDNN_ATTENTION[target] * multiply_adds
    if target.startswith("__cudnn$conv"):
        dims = (inputs[0].dims, inputs[1].dims, instruction.shapes[0].dims)
        return _convolution_flops(*dims, attributes)
    if target.startswith("__cublas"):
        axes = _json_ints(attributes, "lhs_contracting_dimensions")
        contracted = math.prod(inputs[0].dims[axis] for axis in axes)
        return 2.0 * instruction.shapes[0].size * contracted
    return 0.0


def _json_ints(text: str, name: str) -> list[int]:
    """Returns the numbers of the first list of this name in a kernel's config."""
    listed = re.search(rf'"{name}": ?\[([^\]]*)\]', text)
    return [int(n) for n in re.findall(r"\d+", listed[1] if listed else "")]


def kernel_flops(computation: hlo.Computation, instruction: hlo.Instruction) -> float:
    """Returns the FLOPs that a Pallas kernel declares; splash attention declares none and is counted.

    Forward has two matmuls per block of queries and keys, backward (one kernel) five. With the causal mask,
    which comes as one more integer operand, blocks above the diagonal are left out.
    """
    if _LIBRARY in instruction.attributes:
        return library_flops(computation, instruction)
    declared = re.search(r'\\?"flops\\?"\W+(\d+)', instruction.attributes)
    if declared:
        return float(declared[1])
    matmuls = next((n for name, n in _SPLASH.items() if name in instruction.name), 0)
    if not matmuls:
        return 0.0
    inputs = computation.operand_shapes(instruction)
    q, k = [shape for shape in inputs if len(shape.dims) >= 3 and shape.dtype != "s8"][:2]
    block = re.search(r"block_kv_dkv\W+(\d+)", instruction.attributes)
    T, S = q.dims[-2], k.dims[-2]
    share = 1.0
    if block and any(shape.dtype == "s32" and len(shape.dims) == 2 for shape in inputs):
        blocks = S // int(block[1])
        share = (blocks + 1) / (2 * blocks)
    return 2.0 * matmuls * share * math.prod(q.dims[:-2]) * T * S * q.dims[-1]


def hbm_traffic(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> float:
    """Returns the bytes that an instruction reads from and writes to HBM.

    Of what a fusion only slices or updates in place, only that part is read or written.
    """
    opcode = instruction.opcode
    inputs = computation.operand_shapes(instruction)
    written = sum(shape.hbm_bytes for shape in instruction.shapes)
    if opcode == "fusion":
        body = module.called(instruction)
        read = sum(_read(module, body, parameter.name) for parameter in body.parameters())
        return read + _written(module, body, body.root)
    if opcode in ("copy-start", "slice-start"):
        target = instruction.shapes[1] if opcode == "slice-start" else instruction.shapes[0]
        return target.hbm_bytes + (target.bytes if inputs[0].space == 0 else 0.0)
    if opcode in ("dynamic-slice", "slice", "gather"):
        return written + (instruction.shapes[0].bytes if inputs[0].space == 0 else 0.0)
    if (
        opcode == "scatter" and len(inputs) == 3
    ):  # in place: indices and updates are read, these written
        return inputs[1].hbm_bytes + 2 * inputs[2].hbm_bytes
    if opcode == "dynamic-update-slice":
        return 2 * inputs[1].bytes if inputs[0].space == 0 else inputs[1].hbm_bytes
    if opcode == "custom-call" and _LIBRARY in instruction.attributes:
        results = [
            s for s in instruction.shapes if not (s.dtype in ("s8", "u8") and len(s.dims) == 1)
        ]
        return sum(shape.hbm_bytes for shape in (*inputs, *results))  # without the workspace
    if opcode == "custom-call" and _KERNEL not in instruction.attributes:
        return 0.0
    return written + sum(shape.hbm_bytes for shape in inputs)


def _read(module: hlo.Module, body: hlo.Computation, name: str) -> float:
    """Returns the bytes that a fused computation reads of one of its values, if that lies in HBM."""
    shape = body.instructions[name].shapes[0]
    if shape.space:
        return 0.0
    total = 0.0
    for user in body.instructions.values():
        if name not in user.operands:
            continue
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            total += user.shapes[0].bytes if user.operands[0] == name else 0.0
        elif user.opcode in _IN_PLACE and user.operands[0] == name:
            continue
        elif user.opcode == "tuple" and body.instructions[name].opcode in ("parameter", "bitcast"):
            continue  # passed on
        elif user.opcode in COLLECTIVES or _ASYNC in user.attributes:
            continue  # counted as a collective
        elif not user.root and (_is_view(module, user) or user.opcode == "reduce"):
            total += _read(module, body, user.name) * shape.bytes / max(user.shapes[0].bytes, 1)
        elif user.opcode == "fusion":
            inner = module.called(user)
            pairs = zip(user.operands, inner.parameters())
            total += sum(_read(module, inner, p.name) for operand, p in pairs if operand == name)
        else:
            return shape.bytes
    return min(total, shape.bytes)


def _is_view(module: hlo.Module, instruction: hlo.Instruction) -> bool:
    """Returns whether an instruction is a view of a value, or a fusion of views only."""
    if instruction.opcode != "fusion":
        return instruction.opcode in _VIEWS
    inside = module.called(instruction).instructions.values()
    return all(one.opcode == "parameter" or _is_view(module, one) for one in inside)


def _written(module: hlo.Module, body: hlo.Computation, root: hlo.Instruction) -> float:
    """Returns the bytes that a fused computation writes to HBM."""
    if root.opcode == "tuple":
        return sum(_written(module, body, body.instructions[name]) for name in root.operands)
    if root.opcode in ("bitcast", "convert", "copy") and root.shapes[0].space == 0:
        inner = body.instructions[root.operands[0]]
        if inner.opcode in _IN_PLACE:
            return _written(module, body, inner)
    if root.opcode in _IN_PLACE:
        update = body.instructions[root.operands[_IN_PLACE[root.opcode]]].shapes[0]
        return update.bytes if root.shapes[0].space == 0 else 0.0
    if root.opcode == "fusion":
        inner = module.called(root)
        return _written(module, inner, inner.root)
    if root.opcode == "parameter" or root.opcode in COLLECTIVES or _ASYNC in root.attributes:
        return 0.0
    return sum(shape.hbm_bytes for shape in root.shapes)
