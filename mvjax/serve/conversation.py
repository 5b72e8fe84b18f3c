"""One conversation of the server: what outlives a lost socket."""

from __future__ import annotations

import collections
import dataclasses
import secrets
from collections.abc import Sequence
from concurrent import futures
from typing import Any, Protocol, runtime_checkable

import numpy as np

from mvjax.serve import meter as meter_lib
from mvjax.serve import microphone as microphone_lib
from mvjax.serve import transport as transport_lib


@runtime_checkable
class Listener(Protocol):
    """The connection that hears a conversation; called by threads of the engine."""

    transport: transport_lib.Transport
    wants_status: bool  # our page, not upstream's

    def deliver(self, messages: Sequence[bytes]) -> None:
        """Takes the messages of a frame."""
        ...

    def failed(self) -> None:
        """Takes the news that the conversation is over by an error of the server."""
        ...

    def replaced(self) -> None:
        """Takes the news that another connection has resumed the conversation."""
        ...


@dataclasses.dataclass(eq=False)
class Conversation:
    """State shared by the connection (settings, microphone) and the engine (the rest).

    Attributes:
      sampling: settings as `query.SAMPLING` names them.
      seed: of the random state.
      xa_start: frames before the image is seen.
      microphone: the user's audio.
      meter: latencies.
      id: for logs; a secret is `token`.
      token: resumes the conversation.
      image: encoded; None: nothing to see.
      shown: whether the model sees it.
      frame: of the conversation, from 0 again after a restart.
      typed: typed questions as frames of audio, heard in place of the microphone's.
      slot: of the batch; None: before it has joined, and after it left.
      busy: what has to end before the voice of the slot is used again.
      began: when it got its slot, on the monotonic clock.
      listener: the connection, if there is one.
    """

    sampling: dict[str, float]
    seed: int
    xa_start: int
    microphone: microphone_lib.Microphone
    meter: meter_lib.Meter = dataclasses.field(default_factory=meter_lib.Meter)
    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(4))
    token: str = dataclasses.field(default_factory=lambda: secrets.token_urlsafe(24))
    image: Any | None = None
    shown: bool = False
    frame: int = 0
    typed: collections.deque[np.ndarray] = dataclasses.field(default_factory=collections.deque)
    slot: int | None = None
    busy: futures.Future | None = None
    began: float = 0.0
    listener: Listener | None = None

    @property
    def ready(self) -> bool:
        """Whether the engine can take a frame."""
        return len(self.microphone) > 0 and (self.busy is None or self.busy.done())

    @property
    def sees_now(self) -> Any | None:
        """The image of the current frame."""
        return self.image if self.frame >= self.xa_start else None

    def take(self) -> microphone_lib.Heard | None:
        """Returns the next frame to hear, at the microphone's pace."""
        heard = self.microphone.take()
        if heard is None:
            return None
        try:
            return heard._replace(pcm=self.typed.popleft())
        except IndexError:  # nothing typed, or just now stopped by the event loop
            return heard
