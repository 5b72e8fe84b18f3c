"""Training records of the hard digits world; as `digits.records`, of which the spoken ones are made.

visual      spoken dialogues about train images, two questions each
text        more of them, written only
small_talk  spoken dialogues without an image, for context switching
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import numpy as np

from mvjax import files
from mvjax.data import images
from mvjax.data.records import dataset
from mvjax.dialogues import speech
from mvjax.digits import records, talk
from mvjax.digits.hard import frozen_models, world
from mvjax.digits.hard import talk as hard_talk
from mvjax.weights import mimi

VISUAL, TEXT, SMALL_TALK = "visual", "text", "small_talk"

_QUESTIONS = 2  # about a picture; with their answers they fill the rows of the recipe
_TEXTS = 10  # written dialogues for each spoken one
_STREAMS = {VISUAL: 0, TEXT: 1, SMALL_TALK: 2}  # of random numbers


def prepare(
    root: Path,
    *,
    dialogues: int = 400,
    seed: int = 0,
    speak: records.Speak = speech.speak,
    encode: records.Encode | None = None,
    progress: records.Progress | None = None,
) -> None:
    """Writes visual (`dialogues` of them), text (10 times as many) and small_talk (a fifth).

    `encode` is the shipped tiny Mimi unless given; `progress` prints a line now and then.
    """
    if encode is None:
        path = files.resolve(frozen_models.FROZEN.codec)
        encode = mimi.open_codec(path, frozen_models.CODEC).encode
    progress = progress or records.print_progress()
    made_with = dataset.identity(frozen_models.FROZEN)
    for name, count in (
        (VISUAL, dialogues),
        (TEXT, _TEXTS * dialogues),
        (SMALL_TALK, max(2, dialogues // 5)),
    ):
        if name == SMALL_TALK:
            talks = [_chat(seed, i) for i in range(count)]
            scenes: dict[str, world.Scene] = {}
        else:
            pairs = [_about(seed, name, i) for i in range(count)]
            talks = [talked for talked, _ in pairs]
            scenes = {talked.id: scene for talked, scene in pairs}
        pictures = {key: images.encode_png(scene.image) for key, scene in scenes.items()}
        made: Iterable[dataset.Record]
        if name == TEXT:
            made = (records.as_record(talked, pictures) for talked in talks)
        else:
            shown = functools.partial(progress, name)
            made = records.spoken(talks, pictures, (seed, _STREAMS[name]), speak, encode, shown)
        dataset.write(root / name, _with_facts(made, scenes), made_with)


def _about(seed: int, name: str, i: int) -> tuple[talk.DigitsDialogue, world.Scene]:
    """A dialogue whose first question is of each kind in turn, and the scene it is about."""
    rng = np.random.default_rng([seed, _STREAMS[name], i, 0])
    first = hard_talk.KINDS[i % len(hard_talk.KINDS)]
    scene = hard_talk.scene(first, "train", seed * len(_STREAMS) + _STREAMS[name], i)
    others = [kind for kind in hard_talk.possible(scene.facts) if kind != first]
    kinds = [first, *(others[n] for n in rng.permutation(len(others))[: _QUESTIONS - 1])]
    kinds = [kinds[n] for n in rng.permutation(len(kinds))]
    return hard_talk.dialogue(scene.facts, rng, kinds, name=f"{name}-{scene.id}"), scene


def _chat(seed: int, i: int) -> talk.DigitsDialogue:
    rng = np.random.default_rng([seed, _STREAMS[SMALL_TALK], i, 0])
    return talk.small_talk(rng, name=f"{SMALL_TALK}-{seed}-{i:05d}")


def _with_facts(
    made: Iterable[dataset.Record], scenes: dict[str, world.Scene]
) -> Iterator[dataset.Record]:
    for record in made:
        facts = None
        if scene := scenes.get(record.id):
            facts = {
                item.place: f"{item.colour} {hard_talk.value(item, 'digit')}"
                for item in scene.facts.items
            }
        yield msgspec.structs.replace(record, facts=facts)
