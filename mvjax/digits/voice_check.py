"""The assistant's sentences thrice: by the synthesizer, through the codec, and as the model spoke them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mvjax import types
from mvjax.dialogues import speech
from mvjax.digits import talk, voices
from mvjax.eval import answering, codec_check
from mvjax.eval import model as eval_model

SIDES = ("synthesizer", "codec", "model")  # who speaks a sentence
_HEAD, _TAIL = 3, 10  # frames kept before the first word and from the last word on
_AROUND = _HEAD * types.FRAME_SAMPLES  # samples of silence around what is synthesized


class Sentence(NamedTuple):
    """What the model wrote in an answer, as each of `SIDES` says it.

    Attributes:
      said: {side: samples at 24 kHz with the words' starts in seconds}.
    """

    text: str
    said: dict[str, codec_check.Utterance]


def sentences(
    model: eval_model.LoadedModel, spoken: Sequence[answering.SpokenConversation]
) -> list[Sentence]:
    """The answers that have a word, in order; synthesizer and codec say what the model wrote."""
    clips = model.decode_audio([conversation.streams.audio_codes for conversation in spoken])
    own = [_answer(model, *pair) for pair in zip(spoken, clips, strict=True)]
    texts = [" ".join(word for word, _ in words) for _, words in own]
    made = {text: _framed(text) for text in dict.fromkeys(texts) if text}
    if not made:
        return []
    coded = model.decode_audio(model.encode_audio([samples for samples, _ in made.values()]))
    through = {
        text: (clip[: len(samples)], words)
        for clip, (text, (samples, words)) in zip(coded, made.items(), strict=True)
    }
    return [
        Sentence(text, dict(zip(SIDES, (made[text], through[text], answer), strict=True)))
        for text, answer in zip(texts, own, strict=True)
        if text
    ]


def held_out(text: str) -> bool:
    """Whether a sentence is one of the quarter on which no classifier and no decoder is trained."""
    return zlib.crc32(text.encode()) % 4 == 0


def utterances(
    count: int, tested: int, seed: int
) -> tuple[list[codec_check.Utterance], list[codec_check.Utterance]]:
    """The assistant's distinct sentences as synthesized: to train a classifier on, and held-out ones."""
    rng = np.random.default_rng(seed)
    wanted: dict[bool, int] = {False: count, True: tested}
    found: dict[bool, dict[str, None]] = {False: {}, True: {}}
    while any(len(found[kept]) < wanted[kept] for kept in found):
        for turn in talk.visual_dialogue(talk.random_facts(rng), rng).turns:
            if turn.speaker == "assistant":
                found[held_out(turn.text)][turn.text] = None
    training, test = ([_spoken(t) for t in list(found[k])[: wanted[k]]] for k in found)
    return training, test


def _spoken(text: str) -> codec_check.Utterance:
    said = speech.speak(text, voices.ASSISTANT)
    return said.samples, [(word.text, word.start) for word in said.words]


def _framed(text: str) -> codec_check.Utterance:
    """With silence around it, as an answer has."""
    samples, words = _spoken(text)
    lead = _AROUND / types.SAMPLE_RATE
    return np.pad(samples, (_AROUND, _AROUND)), [(word, start + lead) for word, start in words]


def _answer(
    model: eval_model.LoadedModel, spoken: answering.SpokenConversation, samples: np.ndarray
) -> codec_check.Utterance:
    """The answer cut out of a conversation; no samples if it has no word."""
    timed = [word for word in model.timed_words(spoken.streams.text_ids) if word[1] >= spoken.start]
    if not timed:
        return np.zeros(0, np.float32), []
    first = max(timed[0][1] - _HEAD, 0)
    cut = samples[first * types.FRAME_SAMPLES : (timed[-1][1] + _TAIL) * types.FRAME_SAMPLES]
    return cut, [(word, (frame - first) * types.FRAME_SECONDS) for word, frame in timed]
