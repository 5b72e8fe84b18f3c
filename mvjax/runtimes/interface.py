"""What every real-time runtime offers: a `Model`, loaded once, and `Session`s, one for each conversation.

    image = model.encode_image(pixels)                # K/V of the image, once
    session = model.session(image)                    # KV cache, delays, sampling, random state
    for codes in user_codes:                          # [user codebooks], a frame of 80 ms each
        frame = session.step(codes)                   # text token, audio codes, gate activation

Real time is a latency of less than 80 ms a step. Reference section 5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

# how the backbone's KV caches are stored, where not in the dtype of the activations
KvCache = Literal["int8"]
MAX_TOP_K = 512
MAX_PENALTY_CONTEXT = 256  # tokens


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the ids of one stream are sampled from its logits, in this order; reference sections 1.7 and 5.5.

    The last three are of text alone. What is out of range is a ValueError.

    Attributes:
      temperature: 0, and what is below 0.001, is greedy decoding.
      top_k: draw from the so many most likely ids, at most MAX_TOP_K; 0: from all.
      repetition_penalty: divides the positive logits of recent tokens, and multiplies negative ones.
      repetition_penalty_context: how many tokens are recent, at most MAX_PENALTY_CONTEXT; padding is not
        counted.
      pad_multiplier: multiplies the probability of PAD by its exponential, before `top_k`.
    """

    temperature: float = 0.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    repetition_penalty_context: int = 0
    pad_multiplier: float = 0.0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (0.0, 100.0),
            "top_k": (0, MAX_TOP_K),
            "repetition_penalty": (0.01, 100.0),
            "repetition_penalty_context": (0, MAX_PENALTY_CONTEXT),
            "pad_multiplier": (-100.0, 100.0),
        }
        wrong = [
            f"{name}={getattr(self, name)} (from {least:g} to {most:g})"
            for name, (least, most) in ranges.items()
            if not least <= getattr(self, name) <= most
        ]
        if wrong:
            raise ValueError(
                f"sampling: out of range: {', '.join(wrong)}; temperature 0 is greedy"
                " decoding, top_k 0 draws from all ids"
            )


GREEDY = Sampling()
KYUTAI_TEXT = Sampling(temperature=0.7, top_k=25)  # reference section 1.7
KYUTAI_AUDIO = Sampling(temperature=0.8, top_k=250)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a caller needs to know of a model."""

    delays: tuple[
        int, ...
    ]  # frames, one for each stream: text, the assistant's codebooks, the user's
    codebooks_out: int  # Q, the assistant's
    text_vocab: int  # V; also the initial text id
    audio_vocab: int  # C; also the initial audio id
    image_size: int  # pixels, height and width of an image

    @property
    def codebooks_user(self) -> int:
        """The user's codebooks."""
        return len(self.delays) - 1 - self.codebooks_out

    def check_pixels(self, pixels: np.ndarray) -> None:
        """Raises ValueError unless `pixels` is one image [1, height, width, 3] of this size, in [-1, 1]."""
        size = self.image_size
        if pixels.shape != (1, size, size, 3):
            raise ValueError(
                f"image: expected [1, {size}, {size}, 3], got {list(pixels.shape)}; resize"
            )
        if not (np.issubdtype(pixels.dtype, np.floating) and np.all(np.abs(pixels) <= 1)):
            raise ValueError(
                f"image: expected floats in [-1, 1], got {pixels.dtype} from {pixels.min()} to"
                f" {pixels.max()}; divide uint8 by 127.5, subtract 1"
            )


@dataclasses.dataclass(frozen=True)
class Probes:
    """What was computed on the way to a frame."""

    text_logits: Float[np.ndarray, "V"]
    audio_logits: Float[np.ndarray, "Q C"]  # level q is about frame s - delays[1 + q]
    gates: Float[
        np.ndarray, "L"
    ]  # gate activation, the mean over channels; 0 where no image is seen
    hidden: Float[np.ndarray, "L D"]  # the residual stream after each layer


@dataclasses.dataclass(frozen=True)
class Frame:
    """What a session returns for one frame, at call s.

    Attributes:
      text_token: sampled or forced, of frame s.
      audio_codes: of the latest frame that is complete, for the codec; None in the first calls, as many as
        the largest delay.
      audio_tokens: sampled or forced in this call; level q belongs to frame s - delays[1 + q].
      gate: gate activation, the mean over channels and the last ten layers; 0 without an image.
      probes: None unless the session was opened with `probes=True`.
    """

    text_token: int
    audio_codes: Int[np.ndarray, "Q"] | None
    audio_tokens: Int[np.ndarray, "Q"]
    gate: float
    probes: Probes | None


class Turn(NamedTuple):
    """What one conversation of a batch is given for a frame; as the arguments of `Session.step`."""

    user_codes: Int[np.ndarray, "U"]
    text: int | None = None
    audio: Int[np.ndarray, "Q"] | None = None


@runtime_checkable
class Session(Protocol):
    """One conversation; sessions of a model share its weights and nothing else."""

    def show(self, image: Any | None) -> None:
        """Changes what the session sees from the next frame on: an encoded image, or None."""
        ...

    def step(
        self,
        user_codes: Int[np.ndarray, "U"],
        *,
        text: int | None = None,
        audio: Int[np.ndarray, "Q"] | None = None,
    ) -> Frame:
        """Takes one frame of the user and returns one of the assistant.

        Args:
          user_codes: of the user's codebooks, undelayed; -1 where absent.
          text: forces this text token.
          audio: forces these codes, as `Frame.audio_tokens`; UNGENERATED leaves a level to be sampled.
        """
        ...

    def reset(self) -> None:
        """Starts a new conversation, with the random state of the seed and the image now shown."""
        ...


@runtime_checkable
class Slots(Protocol):
    """Up to `size` conversations that step together in one batch, each in a slot of its own.

    One joins or leaves at any frame: nothing is compiled for it, and the others go on as they would alone.
    """

    @property
    def size(self) -> int:
        """How many conversations there is room for."""
        ...

    @property
    def free(self) -> int:
        """How many slots are free."""
        ...

    def join(
        self,
        image: Any | None = None,
        *,
        text_sampling: Sampling = GREEDY,
        audio_sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> int:
        """Starts a conversation; returns its slot. Arguments as of `Model.session`.

        Raises:
          RuntimeError: if no slot is free.
        """
        ...

    def leave(self, slot: int) -> None:
        """Ends the conversation of a slot, which is free then."""
        ...

    def show(self, slot: int, image: Any | None) -> None:
        """As `Session.show`."""
        ...

    def reset(self, slot: int) -> None:
        """As `Session.reset`."""
        ...

    def resample(self, slot: int, *, text_sampling: Sampling, audio_sampling: Sampling) -> None:
        """Changes how a conversation samples from the next frame on; its random state goes on."""
        ...

    def step(self, turns: Mapping[int, Turn]) -> dict[int, Frame]:
        """Steps the conversations that are given a turn, by slot, one frame; the others stand still."""
        ...

    def warm_up(self) -> None:
        """Compiles or captures all that a step needs; before the first conversation."""
        ...


@runtime_checkable
class Model(Protocol):
    """The weights, loaded once for any number of sessions."""

    @property
    def sizes(self) -> Sizes:
        """Vocabularies, codebooks and delays."""
        ...

    def encode_image(self, pixels: Float[np.ndarray, "1 height width 3"]) -> Any:
        """Returns the keys and values of an image, for `session` and `Session.show`.

        Args:
          pixels: of `sizes.image_size`, in [-1, 1].

        Raises:
          ValueError: for another size, naming both.
        """
        ...

    def session(
        self,
        image: Any | None = None,
        *,
        text_sampling: Sampling = GREEDY,
        audio_sampling: Sampling = GREEDY,
        seed: int = 0,
        probes: bool = False,
    ) -> Session:
        """Opens a conversation.

        Args:
          image: what `encode_image` returned; None is exactly plain Moshi.
          text_sampling: of text tokens.
          audio_sampling: of audio codes.
          seed: of both.
          probes: fill in `Frame.probes`, which adds to the latency of every frame.
        """
        ...

    def end_thread(self) -> None:
        """Frees what the runtime keeps for the calling thread: to be called before the thread ends."""
        ...

    def slots(self, size: int, *, probes: bool = False) -> Slots:
        """Returns an empty batch with room for `size` conversations; `probes` as in `session`."""
        ...
