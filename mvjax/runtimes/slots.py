"""Conversations of a batch on the host: slots, delays, sampling, images; an `Engine` computes their frames.

A runtime says how its framework computes one frame of B rows (`Engine`); what is the same everywhere is here.
A single session is a batch of one.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Container, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from mvjax import messages, types
from mvjax.runtimes import delays, interface, sampling


class Inputs(NamedTuple):
    """One frame of every row, for an engine; rows that stand still hold anything.

    Attributes:
      column: delayed ids, as they enter the backbone; -1 adds no embedding.
      position: frames so far of the row's conversation, s. The frame goes into slot s % context of the KV
        cache, and sees the slots up to s. Rows that stand still repeat the position that they write next.
      sees: whether the row sees its image in this frame.
      text, audio: forced ids; UNGENERATED where the model samples.
      sampling: how it does.
    """

    column: Int32[np.ndarray, "B K"]
    position: Int32[np.ndarray, "B"]
    sees: Bool[np.ndarray, "B"]
    text: Int32[np.ndarray, "B"]
    audio: Int32[np.ndarray, "B Q"]
    sampling: sampling.Draws


class Outputs(NamedTuple):
    """What an engine returns, on the host; `probes` are those of `interface.Probes`, B first, or None."""

    text: Int[np.ndarray, "B"]
    audio: Int[np.ndarray, "B Q"]
    gate: Float[np.ndarray, "B"]
    probes: dict[str, np.ndarray] | None


@runtime_checkable
class Engine(Protocol):
    """The KV caches and images of B rows on a device, and the step."""

    def show(self, row: int, image: Any) -> None:
        """Puts the keys and values of an image, as `Model.encode_image` returns them, into a row."""
        ...

    def clear(self, row: int) -> None:
        """Zeros a row's KV cache: what is hidden has weight 0, but 0 times what is not finite is not 0."""
        ...

    def step(self, inputs: Inputs) -> Outputs:
        """Computes one frame of all rows."""
        ...


class BatchedModel(abc.ABC):
    """What `interface.Model` asks of a runtime beyond `sizes`, `encode_image` and an engine."""

    scope: Container[int] = range(2**62)  # frames of a conversation that see the image
    first_step_forcing, user_early = True, False  # as in `delays.DelayBuffer`

    @property
    @abc.abstractmethod
    def sizes(self) -> interface.Sizes:
        """As `interface.Model.sizes`."""

    @abc.abstractmethod
    def encode_image(self, pixels: Float[np.ndarray, "1 height width 3"]) -> Any:
        """As `interface.Model.encode_image`."""

    @abc.abstractmethod
    def engine(self, rows: int, *, probes: bool) -> Engine:
        """Returns an engine with empty KV caches."""

    def end_thread(self) -> None:  # noqa: B027 (most runtimes keep nothing)
        """As `interface.Model.end_thread`."""

    def slots(self, size: int, *, probes: bool = False) -> Slots:
        """As `interface.Model.slots`."""
        return Slots(self, size, probes=probes)

    def session(
        self,
        image: Any | None = None,
        *,
        text_sampling: interface.Sampling = interface.GREEDY,
        audio_sampling: interface.Sampling = interface.GREEDY,
        seed: int = 0,
        probes: bool = False,
    ) -> Session:
        """As `interface.Model.session`."""
        slots = self.slots(1, probes=probes)
        slots.join(image, text_sampling=text_sampling, audio_sampling=audio_sampling, seed=seed)
        return Session(slots)


@dataclasses.dataclass
class _Conversation:
    """The host's part of one conversation."""

    delays: delays.DelayBuffer
    sampler: sampling.Sampler
    shown: bool


class Slots:
    """As `interface.Slots`."""

    def __init__(self, model: BatchedModel, size: int, *, probes: bool) -> None:
        if size < 1:
            raise ValueError(f"slots: expected at least 1, got {size}")
        self._model, self._sizes = model, model.sizes
        self._engine = model.engine(size, probes=probes)
        self._rows: list[_Conversation | None] = [None] * size
        self._used: set[int] = set()  # whose KV caches hold frames

    @property
    def size(self) -> int:
        """As `interface.Slots.size`."""
        return len(self._rows)

    @property
    def free(self) -> int:
        """As `interface.Slots.free`."""
        return self._rows.count(None)

    def join(
        self,
        image: Any | None = None,
        *,
        text_sampling: interface.Sampling = interface.GREEDY,
        audio_sampling: interface.Sampling = interface.GREEDY,
        seed: int = 0,
    ) -> int:
        """As `interface.Slots.join`."""
        if None not in self._rows:
            taken = "the only slot is" if self.size == 1 else f"all {self.size} slots are"
            raise RuntimeError(f"{taken} taken; wait until a conversation leaves")
        slot, model = self._rows.index(None), self._model
        self._rows[slot] = _Conversation(
            delays.DelayBuffer(
                self._sizes,
                first_step_forcing=model.first_step_forcing,
                user_early=model.user_early,
            ),
            sampling.Sampler(
                text_sampling, audio_sampling, seed=seed, codebooks=self._sizes.codebooks_out
            ),
            shown=False,
        )
        self._clear(slot)
        self.show(slot, image)
        return slot

    def leave(self, slot: int) -> None:
        """As `interface.Slots.leave`."""
        self._conversation(slot)
        self._rows[slot] = None

    def show(self, slot: int, image: Any | None) -> None:
        """As `interface.Slots.show`."""
        self._conversation(slot).shown = image is not None
        if image is not None:
            self._engine.show(slot, image)

    def reset(self, slot: int) -> None:
        """As `interface.Slots.reset`."""
        row = self._conversation(slot)
        self._clear(slot)
        row.delays.reset()
        row.sampler.reset()

    def resample(
        self,
        slot: int,
        *,
        text_sampling: interface.Sampling,
        audio_sampling: interface.Sampling,
    ) -> None:
        """As `interface.Slots.resample`."""
        self._conversation(slot).sampler.change(text_sampling, audio_sampling)

    def skip(self, slot: int, frames: int) -> None:
        """Goes on as if so many frames of a slot had passed, of which its KV cache knows nothing."""
        self._conversation(slot).delays.skip(frames)

    def step(self, turns: Mapping[int, interface.Turn]) -> dict[int, interface.Frame]:
        """As `interface.Slots.step`."""
        for slot, turn in turns.items():  # all of them, before anything is written or drawn
            self._conversation(slot)
            check_turn(self._sizes, turn, place=f"slot {slot}")
        inputs = self._blank()
        for slot, turn in turns.items():
            row = self._conversation(slot)
            s = row.delays.step
            inputs.column[slot] = row.delays.column(turn.user_codes)
            inputs.sees[slot] = row.shown and s in self._model.scope
            inputs.text[slot] = types.UNGENERATED if turn.text is None else turn.text
            inputs.audio[slot] = row.delays.forced_audio(turn.audio)
            row.sampler.write(inputs.sampling, slot)
        self._used.update(turns)
        out = self._engine.step(inputs)
        return {slot: self._frame(slot, out) for slot in turns}

    def warm_up(self) -> None:
        """As `interface.Slots.warm_up`."""
        sizes = self._sizes
        pixels = np.zeros((1, sizes.image_size, sizes.image_size, 3), np.float32)
        image, inputs = self._model.encode_image(pixels), self._blank()
        if self._rows[0] is None:
            self._engine.show(0, image)
            self._engine.clear(0)
        for sees in (True, False):
            self._engine.step(inputs._replace(sees=np.full(self.size, sees)))

    def _conversation(self, slot: int) -> _Conversation:
        row = self._rows[slot] if 0 <= slot < self.size else None
        if row is None:
            raise ValueError(f"slot {slot}: there is no conversation; join first")
        return row

    def _clear(self, slot: int) -> None:
        if slot in self._used:
            self._engine.clear(slot)
            self._used.discard(slot)

    def _blank(self) -> Inputs:
        """Inputs of a frame in which every row stands still."""
        B, sizes = self.size, self._sizes
        return Inputs(
            column=np.full((B, len(sizes.delays)), types.ZERO_TOKEN, np.int32),
            position=np.array(
                [0 if row is None else row.delays.step for row in self._rows], np.int32
            ),
            sees=np.zeros(B, bool),
            text=np.zeros(B, np.int32),
            audio=np.zeros((B, sizes.codebooks_out), np.int32),
            sampling=sampling.greedy(B, sizes.codebooks_out),
        )

    def _frame(self, slot: int, out: Outputs) -> interface.Frame:
        row, text, audio = self._conversation(slot), int(out.text[slot]), out.audio[slot].copy()
        row.sampler.said(text)
        probes = None
        if out.probes is not None:
            probes = interface.Probes(**{name: x[slot] for name, x in out.probes.items()})
        return interface.Frame(
            text_token=text,
            audio_codes=row.delays.push(text, audio),
            audio_tokens=audio,
            gate=float(out.gate[slot]),
            probes=probes,
        )


def check_turn(sizes: interface.Sizes, turn: interface.Turn, *, place: str) -> None:
    """Raises ValueError, naming what is wrong, unless every id of a turn is one that the model has."""
    audio = sizes.audio_vocab
    given = {
        "user_codes": (turn.user_codes, (sizes.codebooks_user,), types.ZERO_TOKEN, audio),
        "text": (turn.text, (), types.UNGENERATED, sizes.text_vocab),
        "audio": (turn.audio, (sizes.codebooks_out,), types.UNGENERATED, audio),
    }
    wrong = []
    for name, (ids, shape, least, most) in given.items():
        if ids is None and name != "user_codes":
            continue
        x = np.asarray(ids)
        if x.shape != shape or not np.issubdtype(x.dtype, np.integer):
            wrong.append(f"{name}: expected integers of shape {shape}, got {x.dtype} {x.shape}")
        elif x.size and not (least <= x.min() and x.max() <= most):
            wrong.append(f"{name}: expected ids from {least} to {most}, got {x.min()} to {x.max()}")
    if wrong:
        raise ValueError(
            f"{place}: {messages.names(wrong, between='; ')}; the frame was not stepped"
        )


class Session:
    """As `interface.Session`: the conversation of a batch of one."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def show(self, image: Any | None) -> None:
        """As `interface.Session.show`."""
        self._slots.show(0, image)

    def reset(self) -> None:
        """As `interface.Session.reset`."""
        self._slots.reset(0)

    def step(
        self, user_codes: np.ndarray, *, text: int | None = None, audio: np.ndarray | None = None
    ) -> interface.Frame:
        """As `interface.Session.step`."""
        return self._slots.step({0: interface.Turn(user_codes, text, audio)})[0]
