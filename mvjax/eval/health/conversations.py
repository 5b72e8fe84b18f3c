"""The model's side of recordings of users, with the image in view or as plain Moshi."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, Int

from mvjax import types
from mvjax.data import images as images_lib
from mvjax.eval import model as eval_model
from mvjax.eval.health import activity, recordings, timing
from mvjax.runtimes import interface
from mvjax.runtimes.jax import generate

_ROWS = 16  # conversations at once
_BEFORE = 0.2  # seconds before an interruption is heard from which its control is silent


@dataclasses.dataclass(frozen=True)
class Draws:
    """How ids are sampled; a row of a batch draws the same numbers whatever it hears and sees."""

    text: interface.Sampling = interface.GREEDY
    audio: interface.Sampling = interface.GREEDY
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Both sides: ids of every frame, the model's speech at 24 kHz and text, and who speaks when."""

    recording: recordings.Recording
    user_codes: Int[np.ndarray, "U T"]
    text_ids: Int[np.ndarray, " T"]
    audio_codes: Int[np.ndarray, "Q T"]
    audio: Float[np.ndarray, " samples"]
    said: str
    channels: timing.Channels

    @property
    def utterances(self) -> list[np.ndarray]:
        """The model's speech, each utterance with 0.2 s around it."""
        return activity.cut(self.audio, self.channels.replies)


def hold(
    model: eval_model.LoadedModel,
    heard: Sequence[recordings.Recording],
    *,
    sees: bool,
    draws: Draws,
) -> list[Conversation]:
    """Lets the model answer each recording; `sees` False is plain Moshi, of which no adapter is read."""
    frames = max(-(-len(r.samples) // types.FRAME_SAMPLES) for r in heard)
    talks: list[Conversation] = []
    for first in range(0, len(heard), _ROWS):
        rows = heard[first : first + _ROWS]
        talks += _batch(model, rows, frames, first, sees=sees, draws=draws)
    return talks


def undisturbed(
    model: eval_model.LoadedModel, held: Sequence[Conversation], *, sees: bool, draws: Draws
) -> list[list[float]]:
    """Returns of each interruption in each conversation when the assistant stops without it.

    The conversations are held again with a user who is silent instead of interrupting, and from then on.
    """
    found = [timing.interruptions(c.channels) for c in held]
    ends: list[list[float]] = [[] for _ in held]
    frames = max(len(c.text_ids) for c in held)
    for k in range(max(map(len, found), default=0)):
        for first in range(0, len(held), _ROWS):
            batch = range(first, min(first + _ROWS, len(held)))
            due = [i for i in batch if k < len(found[i])]
            if not due:
                continue
            rows = [held[i].recording for i in batch]
            for i in due:  # in its own row, which draws the same numbers again
                rows[i - first] = _silent_from(rows[i - first], found[i][k].at - _BEFORE)
            controls = _batch(model, rows, frames, first, sees=sees, draws=draws)
            for i in due:
                channels = controls[i - first].channels
                ends[i].append(timing.reply_end(channels, found[i][k].at))
    return ends


def stereo(conversation: Conversation) -> Float[np.ndarray, "2 samples"]:
    """Returns the conversation to listen to: the model left, the user right."""
    user = conversation.recording.samples
    sides = np.zeros((2, max(len(user), len(conversation.audio))), np.float32)
    sides[0, : len(conversation.audio)] = conversation.audio
    sides[1, : len(user)] = user
    return np.clip(sides, -1, 1)


def _batch(
    model: eval_model.LoadedModel,
    heard: Sequence[recordings.Recording],
    frames: int,
    first: int,
    *,
    sees: bool,
    draws: Draws,
) -> list[Conversation]:
    """Holds at most _ROWS conversations, filled up to _ROWS of `frames`: one shape is compiled."""
    filled = [*heard, *[heard[-1]] * (_ROWS - len(heard))]
    size = frames * types.FRAME_SAMPLES
    audio = [np.pad(r.samples, (0, size - len(r.samples))) for r in filled]
    user = np.stack(model.encode_audio(audio))
    kv = None
    if sees:
        pixels = images_lib.normalize(np.stack([r.image for r in filled]))
        kv = generate.image_kv(model.model, model.params, pixels)
    out = generate.generate(
        model.model,
        model.params,
        user,
        kv,
        key=jax.random.fold_in(jax.random.key(draws.seed), first),
        text_sampling=draws.text,
        audio_sampling=draws.audio,
    )
    text, codes = np.asarray(out.text_ids), np.asarray(out.audio_codes)
    sounds = model.decode_audio(list(codes))
    talks = []
    for n, recording in enumerate(heard):
        T = -(-len(recording.samples) // types.FRAME_SAMPLES)
        sound = sounds[n][: len(recording.samples)]
        talks.append(
            _conversation(model, recording, user[n, :, :T], text[n, :T], codes[n, :, :T], sound)
        )
    return talks


def _conversation(
    model: eval_model.LoadedModel,
    recording: recordings.Recording,
    user_codes: np.ndarray,
    text_ids: np.ndarray,
    audio_codes: np.ndarray,
    audio: np.ndarray,
) -> Conversation:
    words = model.timed_words(text_ids)
    channels = timing.Channels(
        recording.kind,
        len(recording.samples) / types.SAMPLE_RATE,
        tuple(activity.spans(recording.samples)),
        tuple(activity.spans(audio)),
        tuple(frame * types.FRAME_SECONDS for _, frame in words),
    )
    said = " ".join(word for word, _ in words)
    return Conversation(recording, user_codes, text_ids, audio_codes, audio, said, channels)


def _silent_from(recording: recordings.Recording, second: float) -> recordings.Recording:
    samples = recording.samples.copy()
    samples[max(0, round(second * types.SAMPLE_RATE)) :] = 0
    return dataclasses.replace(recording, samples=samples)
