"""How a sample is put to the model: as tokens, or as sound frame by frame, and what each place is about.

Lengths depend on the sample alone, never on others of its batch: rounded up along a ladder, so that few
programs are compiled. Samples with the same `key` may be in one batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mvjax import types
from mvjax.config import schema
from mvjax.data import streams
from mvjax.data.records import record
from mvjax.eval import benchmarks

_TOKENS, _CHOICE, _FRAMES = 16, 4, 32  # the smallest steps of the ladders

FREE = types.UNGENERATED  # what the model chooses

Span = tuple[benchmarks.Topic, int, int]  # of (topic, first place, last + 1)


class Written(NamedTuple):
    """A prompt in text-only rows."""

    size: int  # the prompt's length in the batch
    longest: int  # the length of choices in the batch; 0: there are none
    tokens: list[int]  # without the initial one
    spans: list[Span]  # of the assistant's earlier answers
    topic: benchmarks.Topic  # of the answer to come
    choices: list[list[int]]  # tokens of each answer to choose from; none: it is generated

    @property
    def key(self) -> Hashable:
        """What samples of one batch have in common."""
        return "written", self.size, self.longest


class Spoken(NamedTuple):
    """A conversation to be spoken; frames of 80 ms."""

    size: int  # number of frames in the batch
    user: np.ndarray  # float32 [samples] at 24 kHz, silence included
    start: int  # the frame in which the scored question begins
    end: int  # the first frame after it
    last: int  # the first frame that does not count any more
    spans: list[Span]  # of each exchange, from its question to the end of its answer
    forced: list[tuple[int, int]]  # frames in which the assistant's text and speech are given
    assistant: np.ndarray  # float32, as `user`: what it is made to say
    words: list[record.Word]  # of that
    silent: int  # first frames in which its text is padding

    @property
    def key(self) -> Hashable:
        """What samples of one batch have in common."""
        return "spoken", self.size


def written(
    sample: benchmarks.Sample, protocol: benchmarks.PromptProtocol, tokenizer: Any
) -> Written:
    """Returns a written prompt: earlier exchanges as they were answered, then the question."""
    tokens: list[int] = []
    spans: list[Span] = []
    for exchange in sample.before:
        tokens += streams.turn_tokens(record.Turn("user", exchange.question), tokenizer)
        answer = streams.turn_tokens(record.Turn("assistant", exchange.answer), tokenizer)
        spans.append((exchange.topic, len(tokens), len(tokens) + len(answer)))
        tokens += answer
    question = protocol.template.format(prompt=sample.prompt)
    tokens += streams.turn_tokens(record.Turn("user", question), tokenizer)
    choices = [
        streams.turn_tokens(record.Turn("assistant", choice), tokenizer)
        for choice in sample.choices
    ]
    longest = rung(max(map(len, choices)), _CHOICE) if choices else 0
    size = rung(len(tokens), _TOKENS)
    return Written(size, longest, tokens, spans, sample.topic, choices)


def spoken(sample: benchmarks.Sample, protocol: benchmarks.PromptProtocol) -> Spoken:
    """Returns a conversation: silence, earlier exchanges, the question, and silence for its answer.

    Raises:
      ValueError: if the question or an earlier one has no speech.
    """
    lead, tail = _frames(protocol.lead_in), _frames(protocol.tail)
    user, assistant = [np.zeros(lead * types.FRAME_SAMPLES, np.float32)], []
    spans: list[Span] = []
    forced: list[tuple[int, int]] = []
    words: list[record.Word] = []
    at = lead
    for exchange in sample.before:
        question, begin = _whole(_speech(sample, exchange.speech)), at
        at += len(question) // types.FRAME_SAMPLES
        answer = None if exchange.answer_speech is None else exchange.answer_speech()
        frames = tail if answer is None else _frames(len(answer.samples) / types.SAMPLE_RATE)
        if answer is not None:
            assistant.append((at, answer.samples))
            late = at * types.FRAME_SECONDS
            words += [record.Word(w.text, w.start + late, w.end + late) for w in answer.words]
            forced.append((begin, at + frames))
        user += [question, np.zeros(frames * types.FRAME_SAMPLES, np.float32)]
        at += frames
        spans.append((exchange.topic, begin, at))
    question = _whole(_speech(sample, sample.speech))
    end = at + len(question) // types.FRAME_SAMPLES
    spans.append((sample.topic, at, end + tail))
    size = rung(end + tail, _FRAMES)
    return Spoken(
        size=size,
        user=_zero_filled(np.concatenate([*user, question]), size),
        start=at,
        end=end,
        last=end + tail,
        spans=spans,
        forced=forced,
        assistant=_placed(assistant, size),
        words=words,
        silent=lead if protocol.greeting == "suppressed" else 0,
    )


def forced_text(asked: Spoken, config: schema.ModelConfig, tokenizer: Any) -> np.ndarray:
    """Returns the assistant's text int32 [T] where it is given, else UNGENERATED."""
    row = np.full(asked.size, FREE, np.int32)
    row[: asked.silent] = config.text_pad
    if asked.forced:
        pad, epad = config.text_pad, config.text_epad
        given = streams.text_stream(asked.words, asked.size, tokenizer, pad=pad, epad=epad)
        for first, last in asked.forced:
            row[first:last] = given[first:last]
    return row


def forced_audio(asked: Spoken, codes: np.ndarray) -> np.ndarray:
    """Returns `codes` int32 [Q, T] of what the assistant is made to say, UNGENERATED elsewhere."""
    out = np.full_like(codes, FREE)
    for first, last in asked.forced:
        out[:, first:last] = codes[:, first:last]
    return out


def image(sample: benchmarks.Sample) -> benchmarks.LoadImage | None:
    """What loads a sample's image, if it has one; an error names the sample."""
    return (
        None if sample.image is None else functools.partial(_named_image, sample.id, sample.image)
    )


def rung(length: int, step: int) -> int:
    """Returns the next length of a ladder: multiples of a step, then four to eight to an octave."""
    size = max(step, 1 << max(0, (length - 1).bit_length() - 3))
    return max(1, -(-length // size)) * size


def _frames(seconds: float) -> int:
    return math.ceil(seconds * types.FRAME_RATE - 1e-6)


def _named_image(name: str, load: benchmarks.LoadImage) -> np.ndarray:
    try:
        return load()
    except (ValueError, OSError) as error:
        raise ValueError(f"sample {name}: its image: {error}") from error


def _speech(sample: benchmarks.Sample, load: benchmarks.LoadSpeech | None) -> np.ndarray:
    if load is None:
        raise ValueError(
            f"sample {sample.id}: expected spoken questions for mode audio, got written ones"
        )
    try:
        return load()
    except (ValueError, OSError) as error:
        raise ValueError(f"sample {sample.id}: its speech: {error}") from error


def _whole(samples: np.ndarray) -> np.ndarray:
    """Speech, zero-filled to whole frames."""
    return _zero_filled(samples, -(-len(samples) // types.FRAME_SAMPLES))


def _zero_filled(samples: np.ndarray, frames: int) -> np.ndarray:
    return np.pad(samples, (0, frames * types.FRAME_SAMPLES - len(samples))).astype(np.float32)


def _placed(clips: Sequence[tuple[int, np.ndarray]], frames: int) -> np.ndarray:
    """Silence with clips at the frames where they begin; empty without clips."""
    if not clips:
        return np.zeros(0, np.float32)
    track = np.zeros(frames * types.FRAME_SAMPLES, np.float32)
    for frame, samples in clips:
        begin = frame * types.FRAME_SAMPLES
        track[begin : begin + len(samples)] = samples
    return track
