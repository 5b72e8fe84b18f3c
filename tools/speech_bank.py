"""Encoded utterances of the digits world, which `make_tiny_moshi.py` lays dialogues out from.

Every utterance is spoken by eSpeak NG and encoded by the tiny Mimi in a few voices, at random places within
the frame grid and with silence around it.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from mvjax import files, types
from mvjax.data.records import dataset
from mvjax.dialogues import speech
from mvjax.digits import frozen_models, talk, voices
from mvjax.weights import mimi

LEAD, TAIL = 2, 4  # frames of silence encoded before and after an utterance


@dataclasses.dataclass
class Bank:
    """Encoded utterances by (speaker, text), each in several voices and places on the frame grid.

    Attributes:
      clips: [(codes uint16 [Q, T], words on that clock), ...] of each utterance.
      silence: uint16 [Q, T], encoded from the first sample on.
    """

    clips: dict[tuple[str, str], list[tuple[np.ndarray, tuple[dataset.Word, ...]]]]
    silence: np.ndarray

    def holds(self, talked: talk.DigitsDialogue) -> bool:
        """Whether every turn can be laid out from the bank."""
        return all((turn.speaker, turn.text) in self.clips for turn in talked.turns)


def make(draws: int, seed: int, *, silence_frames: int) -> Bank:
    """Speaks and encodes what `draws` dialogues say; what is said often gets more clips."""
    rng = np.random.default_rng(seed)
    said = collections.Counter(
        (turn.speaker, turn.text) for _ in range(draws) for turn in dialogue(rng).turns
    )
    keys, audio, words = [], [], []
    for (speaker, text), count in said.items():
        if count == 1:
            continue  # long echoes, mostly: too many to speak them all
        user = speaker == "user"
        order = rng.permutation(len(voices.TRAIN_USERS))
        # Many clips of the assistant: the model hears its own voice, and would otherwise know from the
        # sound of a sentence's first words how it ends, instead of listening to the user.
        for n in range(min(12, -(-count // 3)) if user else min(8, count + 1)):
            voice = voices.TRAIN_USERS[order[n]] if user else voices.ASSISTANT
            clip, spans = _clip(text, voice, rng, gain=rng.uniform(-6, 0) if user else 0.0)
            keys.append((speaker, text))
            audio.append(clip)
            words.append(spans)
    *codes, silence = encode([*audio, np.zeros(silence_frames * types.FRAME_SAMPLES, np.float32)])
    bank = Bank({}, silence)
    for key, *clip in zip(keys, codes, words, strict=True):
        bank.clips.setdefault(key, []).append(tuple(clip))
    return bank


def _clip(text, voice, rng, *, gain: float) -> tuple[np.ndarray, tuple[dataset.Word, ...]]:
    """An utterance in silence, from a random sample of frame LEAD on, in whole frames."""
    said = speech.speak(text, voice)
    start = LEAD * types.FRAME_SAMPLES + int(rng.integers(types.FRAME_SAMPLES))
    size = start + len(said.samples) + TAIL * types.FRAME_SAMPLES
    clip = np.zeros(-(-size // types.FRAME_SAMPLES) * types.FRAME_SAMPLES, np.float32)
    clip[start : start + len(said.samples)] = said.samples * np.float32(10 ** (gain / 20))
    shift = start / types.SAMPLE_RATE
    return clip, tuple(dataset.Word(w.text, w.start + shift, w.end + shift) for w in said.words)


def dialogue(rng: np.random.Generator) -> talk.DigitsDialogue:
    """One spoken dialogue of any kind."""
    draw = rng.random()
    if draw < 0.45:
        return talk.told_dialogue(rng)
    return talk.blind_dialogue(rng) if draw < 0.8 else talk.small_talk(rng)


def encode(clips: list[np.ndarray]) -> list[np.ndarray]:
    """Codes of each clip; clips of similar length share a batch."""
    codec = mimi.open_codec(files.resolve(frozen_models.FROZEN.codec), frozen_models.CODEC)
    order = sorted(range(len(clips)), key=lambda i: len(clips[i]))
    codes: list[np.ndarray] = [np.zeros(0)] * len(clips)
    for at in range(0, len(order), 32):
        chosen = order[at : at + 32]
        step = 8 * types.FRAME_SAMPLES  # few lengths, few compilations
        length = -(-max(len(clips[i]) for i in chosen) // step) * step
        batch = np.zeros((32, length), np.float32)
        for row, i in enumerate(chosen):
            batch[row, : len(clips[i])] = clips[i]
        out = codec.encode(batch).astype(np.uint16)
        for row, i in enumerate(chosen):
            codes[i] = out[row, :, : len(clips[i]) // types.FRAME_SAMPLES]
    return codes
