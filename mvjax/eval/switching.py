"""Gate activation over a spoken conversation that leaves the image and comes back to it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from mvjax import types
from mvjax.data import images
from mvjax.dialogues import speech
from mvjax.eval import model as eval_model
from mvjax.runtimes import interface
from mvjax.runtimes.jax import model as jax_model

Topic = Literal["image", "small talk"]

_LEAD = 4  # frames before the first question
_ANSWER = 44  # frames (3.5 s) after each question


@dataclasses.dataclass(frozen=True)
class Exchange:
    """One question and its answer within the conversation."""

    topic: Topic
    question: str
    said: str  # the model's words
    frames: tuple[int, int]  # (first, last + 1), the answer included
    asked: tuple[int, int]  # the same of the question alone
    answered: (
        tuple[int, int] | None
    )  # the same from the model's first word to its last; None if silent
    activation: float  # mean over layers, from the model's first word to its last; NaN if silent
    peak: float  # the largest activation (mean over layers) there


@dataclasses.dataclass(frozen=True)
class GateTrace:
    """The conversation frame by frame."""

    exchanges: list[Exchange]
    activation: np.ndarray  # float32 [L, T], the mean over channels of each layer's gate
    words: list[tuple[str, int]]  # (word, frame) of the model
    audio: np.ndarray  # float32 [samples], both sides mixed

    def mean_activation(self, topic: Topic) -> float:
        """Mean gate activation while the model talks about a topic; NaN if it never does."""
        return _mean([e.activation for e in self.exchanges if e.topic == topic])

    def mean_peak(self, topic: Topic) -> float:
        """Mean over a topic's answers of the largest activation in each; NaN if there is none."""
        return _mean([e.peak for e in self.exchanges if e.topic == topic])


def converse(
    model: eval_model.LoadedModel,
    script: Sequence[tuple[Topic, str]],
    image: UInt8[np.ndarray, "height width 3"],
    voice: speech.Voice,
) -> GateTrace:
    """Speaks the user's side of the script, lets the model answer freely, and records its gates."""
    user_audio, spans = _user_side(script, voice)
    user_codes = model.encode_audio([user_audio])[0]
    frames = _talk(model, images.normalize(image)[None], user_codes)
    activation = np.stack([_probes(frame).gates for frame in frames], axis=1)
    complete = [frame.audio_codes for frame in frames if frame.audio_codes is not None]
    answers = model.decode_audio([np.stack(complete, axis=1)])[0]
    words = model.timed_words(np.array([frame.text_token for frame in frames]))
    exchanges = [
        _exchange(topic, question, span, words, activation)
        for (topic, question), span in zip(script, spans, strict=True)
    ]
    size = max(len(user_audio), len(answers))
    mixed = _zero_filled(user_audio, size) + _zero_filled(answers, size)
    return GateTrace(exchanges, activation, words, mixed)


def _talk(
    model: eval_model.LoadedModel,
    pixels: Float[np.ndarray, "1 height width 3"],
    user_codes: Int[np.ndarray, "U T"],
) -> list[interface.Frame]:
    """Returns what the real-time runtime says, greedily; run as by a certificate, so compiled only once."""
    runtime = jax_model.JaxModel(model.config.model, model.params)
    with jax.default_matmul_precision("highest"):
        session = runtime.session(runtime.encode_image(pixels), probes=True)
        return [session.step(codes) for codes in user_codes.T]


def _probes(frame: interface.Frame) -> interface.Probes:
    assert frame.probes is not None
    return frame.probes


def _user_side(
    script: Sequence[tuple[Topic, str]], voice: speech.Voice
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """The user's audio, and the frames of each question with the silence for its answer."""
    pieces = [np.zeros(_LEAD * types.FRAME_SAMPLES, np.float32)]
    ends = [0]
    for _, question in script:
        samples = speech.speak(question, voice).samples
        frames = -(-len(samples) // types.FRAME_SAMPLES) + _ANSWER
        pieces.append(_zero_filled(samples, frames * types.FRAME_SAMPLES))
        ends.append(sum(map(len, pieces)) // types.FRAME_SAMPLES)
    return np.concatenate(pieces), list(itertools.pairwise(ends))


def _exchange(
    topic: Topic,
    question: str,
    span: tuple[int, int],
    words: Sequence[tuple[str, int]],
    activation: np.ndarray,
) -> Exchange:
    inside = [(word, frame) for word, frame in words if span[0] <= frame < span[1]]
    mean = peak = float("nan")
    answered = (inside[0][1], inside[-1][1] + 1) if inside else None
    if answered:
        by_frame = activation[:, slice(*answered)].mean(axis=0)
        mean, peak = float(by_frame.mean()), float(by_frame.max())
    asked = (max(span[0], _LEAD), span[1] - _ANSWER)
    said = " ".join(word for word, _ in inside)
    return Exchange(topic, question, said, span, asked, answered, mean, peak)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _zero_filled(samples: np.ndarray, size: int) -> np.ndarray:
    return np.pad(samples, (0, size - len(samples))).astype(np.float32)
