"""Measures the latency of a runtime's frames: empty and full KV cache, with and without an image, by slots.

Frames come back to back, not every 80 ms. The cache is full after five minutes of conversation; they are not
stepped through: the position is set, and the slots of the cache hold zeros, which takes the same time.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mvjax import types
from mvjax.runtimes import interface, network, voice
from mvjax.runtimes import slots as slots_lib
from mvjax.serve import machine, timing

FIVE_MINUTES = 3750  # frames
_UNTIMED = 2  # frames after a jump: pages that the cache had not touched


class Settings(NamedTuple):
    """What is measured.

    Attributes:
      frames: timed, of each case.
      slots: numbers of conversations in a batch; 1 is measured without an image, too.
      late: position of the frames with a full cache.
    """

    frames: int = 200
    slots: tuple[int, ...] = (1,)
    late: int = FIVE_MINUTES


@dataclasses.dataclass(frozen=True)
class Case:
    """One conversation, or several in a batch.

    Attributes:
      slots: conversations.
      image: whether they see one.
      position: of the first frame.
      latency: of a frame of all.
      seconds: of every frame.
    """

    slots: int
    image: bool
    position: int
    latency: timing.Latency
    seconds: list[float]


class Measured(NamedTuple):
    """What `measure` returns.

    Attributes:
      first: seconds of the first frame of all, {slots: s}, with what it compiles or captures.
      warm_up: seconds of the rest of it.
      cases: in the order in which they ran.
      depth: share of a frame that the depth transformer takes, at the start; None if not told apart.
      memory: resident bytes of the process at the end; None where the system does not tell.
    """

    first: dict[int, float]
    warm_up: dict[int, float]
    cases: list[Case]
    depth: float | None
    memory: int | None


Shallow = Callable[[Any], slots_lib.BatchedModel]  # a model -> the same with one generated codebook


def measure(
    model: slots_lib.BatchedModel, settings: Settings, *, shallow: Shallow | None = None
) -> Measured:
    """Returns the latencies of a loaded model.

    With an image and without take turns, and so do the model and a shallow one, so that other load on the
    machine slows both. Without `shallow` the parts of a `network.Network` alone are told apart.
    """
    image = model.encode_image(pixels(model))
    first, warm_up, cases = {}, {}, []
    for size in settings.slots:
        group, begun = model.slots(size), time.perf_counter()
        joined = [group.join(image) for _ in range(size)]
        _frames(group, joined, model, 1)
        first[size] = time.perf_counter() - begun
        begun = time.perf_counter()
        group.warm_up()
        warm_up[size] = time.perf_counter() - begun
        for position in (0, settings.late):
            shown = (image, None) if size == 1 else (image,)
            for one, seconds in _conversations(group, joined, model, shown, position, settings):
                told = timing.latency(seconds)
                cases.append(Case(size, one is not None, position, told, seconds))
        del group
    memory = machine.resident_memory()
    return Measured(first, warm_up, cases, _depth(model, settings, shallow), memory)


def voice_latency(speaker: voice.Voice, frame: interface.Frame, frames: int) -> timing.Latency:
    """Returns what the codec takes to encode a frame of the user and decode one of the model."""
    noise = np.random.default_rng(0).normal(0, 0.05, (frames + _UNTIMED, types.FRAME_SAMPLES))
    seconds = []
    for pcm in noise.astype(np.float32):
        begun = time.perf_counter()
        speaker.hear(pcm)
        speaker.say(frame)
        seconds.append(time.perf_counter() - begun)
    return timing.latency(seconds[_UNTIMED:])


def any_frame(model: slots_lib.BatchedModel) -> interface.Frame:
    """Returns a frame with codes for the codec."""
    session, codes = model.session(), np.zeros(model.sizes.codebooks_user, np.int32)
    for _ in range(max(model.sizes.delays) + 1):
        frame = session.step(codes)
    return frame


def _conversations(
    group: Any,
    joined: list[int],
    model: slots_lib.BatchedModel,
    images: tuple[Any, ...],
    position: int,
    settings: Settings,
) -> list[tuple[Any, list[float]]]:
    """Returns (image, seconds of each frame) for each image, which are seen in turns."""
    for slot in joined:
        group.reset(slot)
        group.skip(slot, position)
    found: list[tuple[Any, list[float]]] = [(image, []) for image in images]
    turns = len(images) * 5 if len(images) > 1 else 1
    for turn in range(turns):
        image, seconds = found[turn % len(images)]
        for slot in joined:
            group.show(slot, image)
        count = -(-settings.frames * len(images) // turns)
        seconds += _frames(group, joined, model, count + _UNTIMED)[_UNTIMED:]
    return found


def _frames(
    group: Any, joined: list[int], model: slots_lib.BatchedModel, frames: int
) -> list[float]:
    sizes, seconds = model.sizes, []
    heard = np.random.default_rng(1).integers(
        0, sizes.audio_vocab, (frames, len(joined), sizes.codebooks_user), np.int32
    )
    for codes in heard:
        begun = time.perf_counter()
        group.step({slot: interface.Turn(row) for slot, row in zip(joined, codes)})
        seconds.append(time.perf_counter() - begun)
    return seconds


def _depth(
    model: slots_lib.BatchedModel, settings: Settings, shallow: Shallow | None
) -> float | None:
    """Returns the share of the depth transformer: what all codebooks but one add, and one more."""
    if isinstance(model, network.Network):
        other: slots_lib.BatchedModel = model.of_one_codebook()
    elif shallow is not None:
        other = shallow(model)
    else:
        return None
    Q, sides, times = model.sizes.codebooks_out, [], ([], [])
    if Q < 2:
        return None
    for one in (model, other):
        group = one.slots(1)
        joined = [group.join(one.encode_image(pixels(one)))]
        group.warm_up()
        sides.append((group, joined, one))
    for _ in range(settings.frames // 8 + 1):
        for kept, side in zip(times, sides):
            group, joined, one = side
            kept += _frames(group, joined, one, 3)[1:]
    whole, short = (statistics.median(kept) for kept in times)
    return min(max(whole - short, 0.0) * Q / (Q - 1) / whole, 1.0)


def pixels(model: slots_lib.BatchedModel) -> np.ndarray:
    """Returns an image of noise, as `Model.encode_image` takes it."""
    side = model.sizes.image_size
    return np.random.default_rng(2).uniform(-1, 1, (1, side, side, 3)).astype(np.float32)
