"""Training records of the digits world: scenes -> talk -> speech of both sides -> codes.

visual      spoken dialogues about train images (their transcripts serve speechless rows, too)
text        more dialogues about train images, written only
small_talk  spoken dialogues without an image, for context switching
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int

from mvjax import files, types
from mvjax.data import images
from mvjax.data.records import dataset
from mvjax.dialogues import speech
from mvjax.digits import frozen_models, talk, voices, world

Speak = Callable[[str, speech.Voice], speech.SynthesizedSpeech]
Encode = Callable[[np.ndarray], np.ndarray]  # float32 [B, samples] -> codes [B, Q, T]
Progress = Callable[[str, int, int], None]  # (dataset, records done, records in all)

VISUAL, TEXT, SMALL_TALK = "visual", "text", "small_talk"

_QUESTIONS = 2  # about a picture; with their answers they fill the rows of the recipe
_LEAD = (0.1, 0.5)  # seconds of silence before the first utterance
_GAP = {"assistant": (0.16, 0.32), "user": (0.2, 0.6)}  # before what a speaker says next
_TAIL = (0.5, 1.0)  # after the last
_QUIETEST = -6.0  # decibels: the lowest gain of a user
_BATCH_SIZE = 32  # dialogues encoded at once, two channels each
_PAD_TO = 25  # frames; encoded lengths are multiples of it, so that few are compiled
_KINDS = (VISUAL, TEXT, SMALL_TALK)  # the order is part of the seed


@dataclasses.dataclass(frozen=True)
class SpokenDialogue:
    """Both sides of a spoken dialogue on one clock; whole frames."""

    assistant: Float32[np.ndarray, " samples"]
    user: Float32[np.ndarray, " samples"]
    words: tuple[dataset.Word, ...]  # the assistant's
    user_words: tuple[dataset.Word, ...]

    @property
    def frames(self) -> int:
        """T."""
        return len(self.user) // types.FRAME_SAMPLES


def prepare(
    root: Path,
    *,
    dialogues: int = 500,
    seed: int = 0,
    speak: Speak = speech.speak,
    encode: Encode | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes visual (`dialogues` of them), text (4 times as many) and small_talk (a sixth).

    `encode` is the shipped tiny Mimi unless given; `progress` prints a line now and then.
    """
    if encode is None:
        from mvjax.weights import mimi

        codec = mimi.open_codec(files.resolve(frozen_models.FROZEN.codec), frozen_models.CODEC)
        encode = codec.encode
    progress = progress or print_progress()
    made_with = dataset.identity(frozen_models.FROZEN)
    scenes = world.scenes("train", 5 * dialogues, seed)
    pictured, written = scenes[:dialogues], scenes[dialogues:]
    for name, talks, seen in (
        (VISUAL, [_about(scene, seed, VISUAL) for scene in pictured], pictured),
        (TEXT, [_about(scene, seed, TEXT) for scene in written], written),
        (SMALL_TALK, [_chat(i, seed) for i in range(max(2, dialogues // 6))], []),
    ):
        pictures = {scene.id: images.encode_png(scene.image) for scene in seen}
        if name == TEXT:
            made = (as_record(talked, pictures) for talked in talks)
        else:
            shown = functools.partial(progress, name)
            made = spoken(talks, pictures, (seed, _KINDS.index(name)), speak, encode, shown)
        dataset.write(root / name, made, made_with)


def converse(
    dialogue: talk.DigitsDialogue, user: speech.Voice, rng: np.random.Generator, *, speak: Speak
) -> SpokenDialogue:
    """Speaks a dialogue with natural gaps; utterances start anywhere within a frame."""
    gain = np.float32(10 ** (rng.uniform(_QUIETEST, 0) / 20))
    placed: list[tuple[str, int, np.ndarray]] = []
    words: dict[str, list[dataset.Word]] = {"assistant": [], "user": []}
    seconds = 0.0
    for turn in dialogue.turns:
        seconds += rng.uniform(*(_GAP[turn.speaker] if placed else _LEAD))
        said = speak(turn.text, user if turn.speaker == "user" else voices.ASSISTANT)
        start = round(seconds * types.SAMPLE_RATE)
        placed.append((turn.speaker, start, said.samples))
        begin = start / types.SAMPLE_RATE
        words[turn.speaker] += [
            dataset.Word(w.text, begin + w.start, begin + w.end) for w in said.words
        ]
        seconds = (start + len(said.samples)) / types.SAMPLE_RATE
    seconds += rng.uniform(*_TAIL)
    size = int(np.ceil(seconds * types.FRAME_RATE)) * types.FRAME_SAMPLES
    sides = {side: np.zeros(size, np.float32) for side in words}
    for speaker, start, samples in placed:
        loudness = gain if speaker == "user" else np.float32(1)
        sides[speaker][start : start + len(samples)] = samples * loudness
    return SpokenDialogue(
        sides["assistant"], sides["user"], tuple(words["assistant"]), tuple(words["user"])
    )


def encode_all(
    conversations: Sequence[SpokenDialogue], encode: Encode, *, rows: int
) -> list[Int[np.ndarray, "streams T"]]:
    """Codes [2Q, T] of up to `rows` conversations, the assistant's first; one call for all.

    The codec is causal, so silence at the end, added for equal lengths, changes nothing.
    """
    longest = -(-max(c.frames for c in conversations) // _PAD_TO) * _PAD_TO
    audio = np.zeros((2, rows, longest * types.FRAME_SAMPLES), np.float32)
    for i, c in enumerate(conversations):
        audio[0, i, : len(c.assistant)] = c.assistant
        audio[1, i, : len(c.user)] = c.user
    codes = np.asarray(encode(audio.reshape(2 * rows, -1)))
    return [
        np.concatenate([codes[i], codes[rows + i]])[:, : c.frames]
        for i, c in enumerate(conversations)
    ]


def spoken(
    talks: Sequence[talk.DigitsDialogue],
    pictures: Mapping[str, bytes],
    seed: tuple[int, ...],
    speak: Speak,
    encode: Encode,
    progress: Callable[[int, int], None],
) -> Iterator[dataset.Record]:
    """Records with speech; a thread synthesizes the next group while this one is encoded (prefetch).

    `pictures` as in `as_record`; `seed` decides who speaks when.
    """

    def say(group: list[int]) -> list[SpokenDialogue]:
        said = []
        for i in group:
            rng = np.random.default_rng([*seed, i, 1])
            user = voices.TRAIN_USERS[rng.integers(len(voices.TRAIN_USERS))]
            said.append(converse(talks[i], user, rng, speak=speak))
        return said

    # By length of text, so that the dialogues of a group are about equally long.
    order = sorted(range(len(talks)), key=lambda i: sum(len(t.text) for t in talks[i].turns))
    groups = [order[n : n + _BATCH_SIZE] for n in range(0, len(order), _BATCH_SIZE)]
    done = 0
    with futures.ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(say, groups[0])
        for n, group in enumerate(groups):
            conversations = upcoming.result()
            if n + 1 < len(groups):
                upcoming = pool.submit(say, groups[n + 1])
            codes = encode_all(conversations, encode, rows=min(_BATCH_SIZE, len(talks)))
            for i, conversation, code in zip(group, conversations, codes, strict=True):
                yield as_record(talks[i], pictures, conversation, code)
            done += len(group)
            progress(done, len(talks))


def as_record(
    talked: talk.DigitsDialogue,
    pictures: Mapping[str, bytes],
    conversation: SpokenDialogue | None = None,
    codes: np.ndarray | None = None,
) -> dataset.Record:
    """The record of a dialogue, spoken or written; `pictures` has images by the ids of dialogues."""
    spoken = {}
    if conversation is not None and codes is not None:
        spoken = {
            "words": conversation.words,
            "user_words": conversation.user_words,
            "codes": dataset.encode_codes(codes),
            "codebooks": len(codes),
            "seconds": conversation.frames * types.FRAME_SECONDS,
        }
    facts = dataclasses.asdict(talked.facts) if talked.facts else None
    image = pictures.get(talked.id)
    return dataset.Record(
        id=talked.id, kinds=talked.kinds, turns=talked.turns, facts=facts, image=image, **spoken
    )


def _about(scene: world.Scene, seed: int, name: str) -> talk.DigitsDialogue:
    rng = _rng(seed, name, int(scene.id.rsplit("-", 1)[1]), 0)
    return talk.visual_dialogue(scene.facts, rng, turns=_QUESTIONS, name=scene.id)


def _chat(i: int, seed: int) -> talk.DigitsDialogue:
    return talk.small_talk(_rng(seed, SMALL_TALK, i, 0), name=f"{SMALL_TALK}-{seed}-{i:05d}")


def _rng(seed: int, name: str, i: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, _KINDS.index(name), i, purpose])


def print_progress() -> Progress:
    """Returns a progress that prints a line now and then."""
    start = last = time.monotonic()

    def show(name: str, done: int, count: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 5 or done == count:
            last = now
            print(f"records {name}: {done}/{count} ({now - start:.0f} s)", flush=True)

    return show
