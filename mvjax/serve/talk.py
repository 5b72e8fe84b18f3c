"""A conversation offline: images and questions in order, through the session and voice of the server.

    silence of `lead_in` | question | silence of `tail`, for the answer | question | silence ...

Greedy, or with the same seed, the same files say the same again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from mvjax import types
from mvjax.config import talking
from mvjax.data import images
from mvjax.runtimes import interface, loading


@dataclasses.dataclass(frozen=True)
class Shown:
    """From here on the model sees an image: the content of its file."""

    name: str
    data: bytes


@dataclasses.dataclass(frozen=True)
class Question:
    """A spoken question, mono at 24 kHz; a typed one is spoken by `asking`."""

    name: str
    audio: Float32[np.ndarray, " samples"]


Event = Shown | Question


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Both sides on one clock, and what was written.

    Attributes:
      assistant, user: audio, as a listener in the room would hear it.
      transcript: for JSON, see `docs/serving.md`.
    """

    assistant: Float32[np.ndarray, " samples"]
    user: Float32[np.ndarray, " samples"]
    transcript: dict[str, Any]


def converse(
    speaker: loading.Speaker,
    events: Sequence[Event],
    how: talking.TalkConfig,
    *,
    seed: int = 0,
) -> Conversation:
    """Holds a conversation.

    Args:
      speaker: from `loading.open_speaker`.
      events: in order; an image before the first question is seen from the first frame on.
      how: silences, in seconds, and sampling.
      seed: of the sampling.
    """
    recorder = _Recorder(speaker, how, seed)
    early = 0
    while early < len(events) and isinstance(event := events[early], Shown):
        recorder.show(event)
        early += 1
    recorder.hear(_silence(how.lead_in))
    for event in events[early:]:
        if isinstance(event, Shown):
            recorder.show(event)
            continue
        recorder.ask(event)
        recorder.hear(_silence(how.tail))
    return recorder.conversation()


def minutes(events: Sequence[Event], how: talking.TalkConfig) -> float:
    """Returns how long a conversation lasts at most."""
    asked = [event.audio for event in events if isinstance(event, Question)]
    spoken = sum(len(audio) / types.SAMPLE_RATE + types.FRAME_SECONDS for audio in asked)
    return (how.lead_in + spoken + len(asked) * (how.tail + types.FRAME_SECONDS) + 1) / 60


class _Recorder:
    """Steps a session frame by frame and keeps what both sides say."""

    def __init__(self, speaker: loading.Speaker, how: talking.TalkConfig, seed: int) -> None:
        self._speaker, self._how, self._seed = speaker, how, seed
        self._session = speaker.model.session(
            text_sampling=interface.Sampling(how.text_temperature, how.text_top_k),
            audio_sampling=interface.Sampling(how.audio_temperature, how.audio_top_k),
            seed=seed,
        )
        self._voice = speaker.voice()
        self._assistant: list[np.ndarray] = []
        self._user: list[np.ndarray] = []
        self._gates: list[float] = []
        self._pieces: list[dict[str, Any]] = []
        self._images: list[dict[str, Any]] = []
        self._questions: list[dict[str, Any]] = []

    def show(self, image: Shown) -> None:
        model = self._speaker.model
        try:
            pixels = images.resize_square(images.decode(image.data), model.sizes.image_size)
        except ValueError as error:
            raise ValueError(f"{image.name}: {error}") from error
        self._session.show(model.encode_image(images.normalize(pixels)[None]))
        self._images.append({"from": self._seconds, "name": image.name})

    def ask(self, question: Question) -> None:
        begin = self._seconds
        self.hear(question.audio)
        self._questions.append({"start": begin, "end": self._seconds, "asked": question.name})

    def hear(self, audio: np.ndarray) -> None:
        """Steps through audio of the user, filled up to whole frames."""
        for pcm in _frames(audio):
            self._step(pcm)

    def conversation(self) -> Conversation:
        questions = self._questions
        ends = [*(q["start"] for q in questions[1:]), self._seconds]
        for question, end in zip(questions, ends, strict=True):
            said = (p["text"] for p in self._pieces if question["start"] <= p["start"] < end)
            question["answer"] = "".join(said).strip()
        transcript = {
            "model": self._speaker.name,
            "verdict": self._speaker.verdict,
            "seconds": self._seconds,
            "talk": dataclasses.asdict(self._how),
            "seed": self._seed,
            "images": self._images,
            "questions": questions,
            "transcript": self._pieces,
            "gates": self._gates,
        }
        return Conversation(np.concatenate(self._assistant), np.concatenate(self._user), transcript)

    def _step(self, pcm: np.ndarray) -> None:
        frame = self._session.step(self._voice.hear(pcm))
        said = self._voice.say(frame)
        gate = round(frame.gate, 4)
        if said.text:
            self._pieces.append({"start": self._seconds, "text": said.text, "gate": gate})
        self._gates.append(gate)
        self._user.append(pcm)
        self._assistant.append(said.pcm)

    @property
    def _seconds(self) -> float:
        return round(len(self._gates) * types.FRAME_SECONDS, 2)


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * types.SAMPLE_RATE), np.float32)


def _frames(audio: np.ndarray) -> Iterator[np.ndarray]:
    size = types.FRAME_SAMPLES
    padded = np.pad(audio, (0, -len(audio) % size))
    yield from padded.reshape(-1, size)
