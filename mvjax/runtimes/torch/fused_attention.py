"""Attention of one query a conversation in Triton: the keys are split, so that all of a GPU reads them.

PyTorch's kernels give a head of a conversation to one multiprocessor: a quarter of a large GPU works for one
conversation of 32 heads. And with a mask they read the slots of the KV cache that nothing has filled yet.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from mvjax.runtimes.torch import fused

_BLOCK = 64  # keys at a time
_WAVES = 2  # programs for each multiprocessor


def attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    position: torch.Tensor | None = None,
    context: int | None = None,
) -> torch.Tensor:
    """Returns what q [B, N, H] attends to, [B, N, H].

    Args:
      q: one query a row.
      keys: [B, N, S, H], contiguous; floats, or int8 codes.
      values: as keys.
      scales: of codes, of the keys and of the values, float32 [B, N, S] each.
      position: int [B]; slots up to it are attended to, and all once it has passed `context`; None: all S.
      context: slots in use, at most S.
    """
    rows, heads, slots, width = keys.shape
    assert keys.is_contiguous() and values.is_contiguous()
    count, limit = rows * heads, slots if context is None else context
    splits = triton.next_power_of_2(
        max(1, min(_WAVES * _processors(q.device) // count, triton.cdiv(limit, _BLOCK)))
    )
    part = triton.cdiv(triton.cdiv(limit, splits), _BLOCK) * _BLOCK
    query = q.contiguous()
    sums = torch.empty((count, splits, width), dtype=torch.float32, device=q.device)
    state = torch.empty((count, splits, 2), dtype=torch.float32, device=q.device)
    k_scale, v_scale = (query, query) if scales is None else scales
    _attend[(count, splits)](
        query, keys, values, k_scale, v_scale, query if position is None else position, sums, state,
        heads, slots, limit, width**-0.5, scales is not None, position is not None, width,
        triton.next_power_of_2(width), part, _BLOCK, num_warps=4, num_stages=2,
    )  # fmt: skip
    result = torch.empty((rows, heads, width), dtype=q.dtype, device=q.device)
    _join[(count,)](sums, state, result, width, triton.next_power_of_2(width), splits, num_warps=2)
    return result


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":  # Triton's interpreter
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count


@fused.jit
def _attend(
    q, keys, values, k_scale, v_scale, position, sums, state, heads, slots, limit, scale,
    coded: tl.constexpr, limited: tl.constexpr, width: tl.constexpr, padded: tl.constexpr,
    part: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    head, split = tl.program_id(0), tl.program_id(1)
    stop = limit
    if limited:
        stop = tl.minimum(tl.load(position + head // heads).to(tl.int32) + 1, limit)
    at, step = tl.arange(0, padded), tl.arange(0, block)
    inside = at < width
    query = tl.load(q + head * width + at, mask=inside, other=0.0).to(tl.float32) * scale
    first = head.to(tl.int64) * slots
    most, weight = -1.0e30, 0.0
    total = tl.zeros((padded,), tl.float32)
    for start in range(0, part, block):
        slot = split * part + start + step
        there = slot < stop
        both = there[:, None] & inside[None, :]
        places = (first + slot)[:, None] * width + at[None, :]
        k = tl.load(keys + places, mask=both, other=0.0).to(tl.float32)
        scores = tl.sum(k * query[None, :], 1)
        if coded:
            scores *= tl.load(k_scale + first + slot, mask=there, other=0.0)
        scores = tl.where(there, scores, float("-inf"))
        above = tl.maximum(most, tl.max(scores, 0))
        shrunk, p = tl.exp(most - above), tl.exp(scores - above)
        weight = weight * shrunk + tl.sum(p, 0)
        if coded:
            p *= tl.load(v_scale + first + slot, mask=there, other=0.0)
        v = tl.load(values + places, mask=both, other=0.0).to(tl.float32)
        total = total * shrunk + tl.sum(p[:, None] * v, 0)
        most = above
    row = head * tl.num_programs(1) + split
    tl.store(sums + row * width + at, total, mask=inside)
    tl.store(state + row * 2, most)
    tl.store(state + row * 2 + 1, weight)


@fused.jit
def _join(
    sums, state, result, width, padded: tl.constexpr, splits: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    at, rows = tl.arange(0, padded), head * splits + tl.arange(0, splits)
    inside = at < width
    most, weight = tl.load(state + rows * 2), tl.load(state + rows * 2 + 1)
    share = tl.exp(most - tl.max(most, 0))
    share = share / tl.sum(share * weight, 0)
    each = tl.load(sums + rows[:, None] * width + at[None, :], mask=inside[None, :], other=0.0)
    total = tl.sum(each * share[:, None], 0)
    tl.store(result + head * width + at, total.to(result.dtype.element_ty), mask=inside)
