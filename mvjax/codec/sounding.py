"""The encoder's convolutions over what sounds: silence in which they are at rest is left out.

Stretches of sound go through them side by side in lanes, a few frames at a time:

    signals  |..AAAA....BB...|      lanes  |AAAAD|    A stretch begins as at the start of a signal, or from
             |CCC.....D......|             |CCCBB|    rest: both states are known.

So one compiled program serves signals of every length. For CPUs, where computing costs more than calling.
"""

from __future__ import annotations

import functools
import heapq
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from mvjax.codec import mimi, seanet
from mvjax.config import frozen

_GO_ON, _FROM_START, _FROM_REST = range(3)  # how a lane begins a chunk


class Stretches(NamedTuple):
    """Frames from `begin` to before `end` of a row in which the convolutions are not at rest."""

    rows: Int[np.ndarray, " n"]
    begins: Int[np.ndarray, " n"]
    ends: Int[np.ndarray, " n"]


class Schedule(NamedTuple):
    """What each lane computes when; an idle lane has a frame past the end."""

    chunk: int  # frames at once
    rows: Int[np.ndarray, "chunks lanes"]
    frames: Int[np.ndarray, "chunks lanes"]  # the first of each chunk
    how: Int[np.ndarray, "chunks lanes"]


class Rest(NamedTuple):
    """What the convolutions give and remember in silence."""

    steps: Float32[np.ndarray, "steps latent"]  # of one frame
    state: seanet.ConvState  # of one row


class Convolutions:
    """Those of one codec; what they are at rest is computed once."""

    def __init__(self, params: Mapping[str, Any], config: frozen.MimiConfig) -> None:
        self._params, self._config = params, config
        self._rest: Rest | None = None
        self._lock = threading.Lock()

    def __call__(
        self, audio: Float32[np.ndarray, "B T samples"]
    ) -> Float32[np.ndarray, "B steps latent"]:
        """Returns what `Mimi.convolve` does with the frames of whole signals."""
        found, most = stretches(audio, reach(self._config)), mimi.cpu_frames(self._config)
        T = audio.shape[1]
        plans = (schedule(found, T, lanes=lanes, chunk=most // lanes) for lanes in (1, most))
        plan = min(plans, key=lambda plan: len(plan.rows))
        with self._lock:  # of several threads one compiles
            if self._rest is None:
                self._rest = self._at_rest(plan.rows.shape[1], plan.chunk)
        audio = np.pad(audio, ((0, 0), (0, plan.chunk), (0, 0)))
        made, _ = self._run(audio, plan, self._rest.state)
        out = np.tile(self._rest.steps, (len(audio), audio.shape[1], 1, 1))
        for rows, frames, steps in zip(plan.rows, plan.frames, made, strict=True):
            out[rows[:, None], frames[:, None] + np.arange(plan.chunk)] = steps
        return out[:, :T].reshape(len(out), -1, out.shape[-1])

    def _at_rest(self, lanes: int, chunk: int) -> Rest:
        silence = np.zeros((lanes, reach(self._config) + 1, self._config.frame_samples), np.float32)
        rows, T = np.arange(lanes), silence.shape[1]
        whole = Stretches(rows, np.zeros_like(rows), np.full_like(rows, T))
        plan = schedule(whole, T, lanes=lanes, chunk=chunk)
        silence = np.pad(silence, ((0, 0), (0, chunk), (0, 0)))
        made, state = self._run(silence, plan, _start(self._config, 1))
        return Rest(made[-1][0, -1], jax.tree.map(lambda x: x[:1], state))

    def _run(
        self, audio: np.ndarray, plan: Schedule, rest: seanet.ConvState
    ) -> tuple[list[np.ndarray], seanet.ConvState]:
        """Returns the steps [lanes, chunk, steps, latent] of every chunk, and the last state."""
        lanes, inside = plan.rows.shape[1], np.arange(plan.chunk)
        state, made = _start(self._config, lanes), []
        for rows, frames, how in zip(plan.rows, plan.frames, plan.how, strict=True):
            heard = audio[rows[:, None], frames[:, None] + inside].reshape(lanes, -1)
            steps, state = _chunk(self._params, state, rest, heard, how, config=self._config)
            made.append(steps)
        shape = (lanes, plan.chunk, frozen.MIMI_STEPS, -1)
        return [np.asarray(steps).reshape(shape) for steps in made], state


def _start(config: frozen.MimiConfig, rows: int) -> seanet.ConvState:
    """Returns states placed as those that `_chunk` returns, or it would be compiled for both."""
    return jax.device_put(mimi.start(config, batch=rows).encoder.convs, jax.local_devices()[0])


def reach(config: frozen.MimiConfig) -> int:
    """Frames of silence after which the convolutions are at rest."""
    return -(-seanet.context(config) // config.frame_samples)


def stretches(audio: Float32[np.ndarray, "B T samples"], reach: int) -> Stretches:
    """Finds them; the first frames of a row belong to one: before a signal is not silence, but nothing."""
    heard: np.ndarray = np.any(audio, axis=2)
    moved = heard.copy()
    moved[:, :reach] = True
    for n in range(1, reach + 1):
        moved[:, n:] |= heard[:, :-n]
    edges = np.diff(np.pad(moved, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, begins = np.nonzero(edges == 1)
    return Stretches(rows, begins, np.nonzero(edges == -1)[1])


def schedule(found: Stretches, idle: int, *, lanes: int, chunk: int) -> Schedule:
    """Deals stretches to lanes, the longest first, each to the lane that is free first."""
    chunks = -(-(found.ends - found.begins) // chunk)
    free = [(0, lane) for lane in range(lanes)]
    placed = []
    for i in np.argsort(-chunks, kind="stable"):
        first, lane = heapq.heappop(free)
        placed.append((i, first, lane))
        heapq.heappush(free, (first + int(chunks[i]), lane))
    shape = (max(free)[0], lanes)
    plan = Schedule(chunk, np.zeros(shape, int), np.full(shape, idle), np.zeros(shape, int))
    for i, first, lane in placed:
        here = slice(first, first + chunks[i])
        plan.rows[here, lane] = found.rows[i]
        plan.frames[here, lane] = found.begins[i] + chunk * np.arange(int(chunks[i]))
        plan.how[first, lane] = _FROM_REST if found.begins[i] else _FROM_START
    return plan


@functools.partial(jax.jit, static_argnames="config", donate_argnames="state")
def _chunk(
    params: Mapping[str, Any],
    state: seanet.ConvState,
    rest: seanet.ConvState,
    audio: Float[Array, "lanes samples"],
    how: Int[Array, " lanes"],
    *,
    config: frozen.MimiConfig,
) -> tuple[Float[Array, "lanes steps latent"], seanet.ConvState]:
    """Returns the steps of each lane's next frames, and the state after them."""

    def begun(before: Array, resting: Array) -> Array:
        this = how.reshape(-1, *[1] * (before.ndim - 1))
        before = jnp.where(this == _FROM_REST, resting, before)
        return jnp.where(this == _FROM_START, jnp.zeros_like(before), before)

    state = jax.tree.map(begun, state, rest)
    made: Any = mimi.Mimi(config).apply({"params": params}, audio, state, method="convolve")
    return made
