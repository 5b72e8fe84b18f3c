"""The KV caches and images of B rows in PyTorch, and the step: on a GPU, a CUDA graph.

A frame's inputs lie in one buffer on the device and its outputs in another, so that a frame is two copies and
the replay of a graph. What is captured is `Engine.compute`, the function that a CPU calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mvjax.runtimes import choosing, network, slots

if TYPE_CHECKING:
    from mvjax.runtimes.torch import model as model_lib
    from mvjax.runtimes.torch import triton_kernels

Compute = Callable[[], slots.Outputs]


def cuda_graph(compute: Compute) -> Compute:
    """Captures what a function launches; the function that is returned replays it.

    The inputs are read from where they were, and each call returns the same tensors, filled again.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries allocate in the first calls
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = compute()

    def replay() -> slots.Outputs:
        graph.replay()
        return outputs

    return replay


class Engine:
    """As `slots.Engine`.

    Args:
      model: whose weights are used.
      rows: B.
      probes: return them.
      capture: makes the function that is called in each frame from `compute`; None: `cuda_graph` on a GPU,
        else `compute` itself, on no more of the KV cache than is filled.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: model_lib.TorchModel,
        rows: int,
        *,
        probes: bool,
        capture: Callable[[Compute], Compute] | None = None,
    ) -> None:
        c = model.config
        self._model, self._rows, self._probes = model, rows, probes
        self._capture = cuda_graph if capture is None and model.device.type == "cuda" else capture
        self._captured: dict[bool, Compute] = {}
        capacity = -(-c.context // 8) * 8  # masks of CUDA's attention are read eight at a time
        shape = rows, c.heads, capacity, model.weights["out_norm.weight"].numel() // c.heads
        specs = [(shape, model.activations)] * 2
        if model.kv_cache is not None:
            specs = [(shape, getattr(torch, model.kv_cache)), (shape[:-1], torch.float32)] * 2
        self._past = [
            [torch.zeros(size, dtype=dtype, device=model.device) for size, dtype in specs]
            for _ in range(c.layers)
        ]
        self._slots = torch.arange(capacity, device=model.device)
        self._image: network.KeysValues | None = None
        self._given: _Buffer | None = None

    @torch.inference_mode()
    def show(self, row: int, image: network.KeysValues) -> None:
        """As `slots.Engine.show`; images stay where the first was put."""
        if self._image is None:
            keys, values = (x.new_zeros((self._rows, *x.shape[1:])) for x in image)
            self._image = keys, values
        for kept, given in zip(self._image, image):
            kept[row].copy_(given[0])

    @torch.inference_mode()
    def clear(self, row: int) -> None:
        """As `slots.Engine.clear`."""
        for past in self._past:
            for tensor in past:
                tensor[row].zero_()

    @torch.inference_mode()
    def step(self, inputs: slots.Inputs) -> slots.Outputs:
        """As `slots.Engine.step`."""
        if self._given is None:
            self._given = _Buffer(inputs, self._model.device)
        self._given.write(inputs)
        seeing = self._image is not None and (self._rows > 1 or bool(inputs.sees.any()))
        if self._capture is None:
            filled = min(int(inputs.position.max()) + 1, self._model.config.context)
            known = choosing.known(inputs.sampling)
            all_see = bool(inputs.sees.all())
            with self._model.threads(self._rows):
                out = self.compute(seeing, filled=filled, known=known, all_see=all_see)
        else:
            if seeing not in self._captured:
                self._captured[seeing] = self._capture(lambda: self.compute(seeing))
            out = self._captured[seeing]()
        return self._on_host(out)

    def compute(
        self,
        seeing: bool,
        *,
        filled: int | None = None,
        known: choosing.Known = choosing.NOTHING_KNOWN,
        all_see: bool = False,
    ) -> slots.Outputs:
        """Computes the frame whose inputs are in the buffer; nothing in it waits for the device.

        Args:
          seeing: with cross-attention.
          filled: slots of the KV cache that hold anything; None: any may.
          known: as in `network.Network.frame`.
          all_see: every row sees its image.

        Returns:
          Outputs whose `text` holds all that is returned without probes, [B, 2 + Q].
        """
        assert self._given is not None
        given = self._given.inputs
        on_device = (
            self._model.device if self._model.device.type != "cpu" else contextlib.nullcontext()
        )
        with on_device:
            position = given.position.long()
            cache = self._cache(position, filled)
            sees = None if all_see else given.sees != 0
            image = network.Seen(*self._image, sees) if seeing and self._image else None
            out: Any = self._model.frame(given, cache, image, probes=self._probes, known=known)
            ids = torch.cat([out.text[:, None], out.audio], 1).to(torch.int32)
            gate = out.gate.float()[:, None].view(torch.int32)
            return out._replace(text=torch.cat([ids, gate], 1))

    def _cache(self, position: torch.Tensor, filled: int | None) -> network.Cache:
        context = self._model.config.context
        if self._model.kernels:
            return _FusedCache(self._model.kernels, self._past, position, context)
        mask = None
        if filled is None or self._rows > 1:
            mask = self._slots[:filled] <= position.clamp(max=context - 1)[:, None]
        return _Cache(self._past, position % context, filled, mask)

    def _on_host(self, out: Any) -> slots.Outputs:
        """Returns numpy arrays of their own: the tensors are filled again. One transfer without probes."""
        row = out.text.cpu().numpy().copy()
        gate = np.ascontiguousarray(row[:, -1]).view(np.float32)
        fields = None
        if out.probes is not None:
            fields = {name: x.cpu().numpy().copy() for name, x in out.probes.items()}
        return slots.Outputs(row[:, 0], row[:, 1:-1], gate, fields)


class _Buffer:
    """The inputs of a frame on the device, in one piece: `write` fills them with one copy."""

    def __init__(self, like: slots.Inputs, device: torch.device) -> None:
        arrays = [*like[:-1], *like.sampling]
        words = sum(array.size for array in arrays)
        pinned = device.type == "cuda"
        self._host = torch.zeros(words, dtype=torch.int32, pin_memory=pinned)
        self._device = torch.zeros(words, dtype=torch.int32, device=device)
        self._parts: list[np.ndarray] = []
        views, start, flat = [], 0, self._host.numpy()
        for array in arrays:
            stop, floats = start + array.size, array.dtype == np.float32
            part = flat[start:stop].reshape(array.shape)
            self._parts.append(part.view(np.float32) if floats else part)
            view = self._device[start:stop].view(array.shape)
            views.append(view.view(torch.float32) if floats else view)
            start = stop
        head = len(like) - 1
        draws: Any = type(like.sampling)(*views[head:])
        self.inputs: Any = slots.Inputs(*views[:head], sampling=draws)

    def write(self, inputs: slots.Inputs) -> None:
        """Takes the inputs of the next frame."""
        for part, array in zip(self._parts, (*inputs[:-1], *inputs.sampling), strict=True):
            part[...] = array
        self._device.copy_(self._host, non_blocking=True)


class _Cache:
    """As `network.Cache`; `past` of each layer are keys and values, or codes and scales of each."""

    def __init__(
        self,
        past: list[list[torch.Tensor]],
        slot: torch.Tensor,
        filled: int | None,
        mask: torch.Tensor | None,
    ) -> None:
        self._past, self._slot, self._filled = past, slot, filled
        self._rows = torch.arange(len(slot))
        self._mask = None if mask is None else mask[:, None, None]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """As `network.Cache.attend`."""
        past = self._past[layer]
        _write(past, self._rows, self._slot, k, v)
        past = [tensor[:, :, : self._filled] for tensor in past]
        if len(past) == 2:
            return torch.nn.functional.scaled_dot_product_attention(
                q[:, :, None], *past, attn_mask=self._mask
            )
        return _attend_to_codes(q[:, :, None], past, self._mask)


class _FusedCache:
    """As `_Cache`, on a GPU: reads the slots that are filled, in all of its multiprocessors."""

    def __init__(
        self,
        kernels: triton_kernels.Kernels,
        past: list[list[torch.Tensor]],
        position: torch.Tensor,
        context: int,
    ) -> None:
        self._kernels, self._past, self._position, self._context = kernels, past, position, context
        self._rows, self._slot = torch.arange(len(position)), position % context

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """As `network.Cache.attend`."""
        past = self._past[layer]
        _write(past, self._rows, self._slot, k, v)
        keys, values, scales = past[0], past[-1], None
        if len(past) == 4:
            keys, k_scale, values, v_scale = past
            scales = k_scale, v_scale
        return self._kernels.attend(
            q, keys, values, scales=scales, position=self._position, context=self._context
        )


def _write(
    past: list[torch.Tensor],
    rows: torch.Tensor,
    slot: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
) -> None:
    new = (k, v) if len(past) == 2 else (*_quantized(k), *_quantized(v))
    for tensor, part in zip(past, new):
        tensor[rows, :, slot] = part


def _quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (int8 codes of [B, N, H], scale [B, N]): x is about their product."""
    x = x.float()
    scale = x.abs().amax(-1) / 127
    return (x / scale.where(scale != 0, 1.0)[..., None]).round().to(torch.int8), scale


def _attend_to_codes(
    q: torch.Tensor, past: list[torch.Tensor], mask: torch.Tensor | None
) -> torch.Tensor:
    """Attends from [B, N, 1, H], in float32: no more than one layer's codes are floats at a time."""
    keys, k_scale, values, v_scale = past
    scores = q.float() @ keys.float().transpose(-1, -2)
    scores = scores * (k_scale * q.shape[-1] ** -0.5)[:, :, None]
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1) * v_scale[:, :, None]
    return (weights @ values.float()).to(q.dtype)
