"""What users say to the digits world when its conversation health is examined, in held-out voices.

question      about the image; before every second one the user is silent for 3 s: room for a greeting
pause         a question with 1.2 s of silence between two of its words
interruption  a question with a long answer, and another one 1.2 s after its end, amid that answer
unrelated     small talk, two exchanges, while an image is in view
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mvjax import types
from mvjax.dialogues import speech
from mvjax.digits import talk, voices, wordings, world
from mvjax.eval.health import checkup, recordings, timing

PRONUNCIATIONS = {"moshi": "M OW SH IY"}  # a word that CMUdict has not

_LEAD, _OPENING = 0.32, 3.0  # seconds before the first word
_PAUSE, _BREAKS_IN = 1.2, 1.2
_ANSWER = 5.12  # after a question, as in the benchmark
_CHAT_ANSWER = 3.5
_LONG: tuple[talk.Kind, ...] = ("describe", "misleading")  # kinds whose answers last 1.5 s and more

Piece = str | float  # what is said, or seconds of silence


def questions(*, per_kind: int, seed: int) -> checkup.Questions:
    """Draws `per_kind` recordings of each of the four kinds, an image and the next voice for each."""
    scenes = world.scenes("test", 4 * per_kind, seed)
    about = []
    for i, scene in enumerate(scenes[: 3 * per_kind]):
        rng = np.random.default_rng([seed, i])
        kind = timing.KINDS[i % 3]
        pieces = _pieces(kind, i // 3, scene.facts, rng)
        about.append(_recording(f"{kind}-{scene.id}", kind, pieces, i // 3, scene.image))
    unrelated = []
    for i, scene in enumerate(scenes[3 * per_kind :]):
        turns = talk.small_talk(np.random.default_rng([seed, 3 * per_kind + i]), turns=2).turns
        asked = [turn.text for turn in turns if turn.speaker == "user"]
        pieces = [_LEAD, *(piece for text in asked for piece in (text, _CHAT_ANSWER))]
        unrelated.append(_recording(f"unrelated-{scene.id}", "question", pieces, i, scene.image))
    return checkup.Questions(about, unrelated)


def grammar() -> str:
    """Returns all that the assistant may say, in JSGF: one or more of its sentences."""
    said = {name: " | ".join(map(talk.in_sentence, known)) for name, known in talk.VALUES.items()}
    rules = {
        **{name: " | ".join(known) for name, known in talk.VALUES.items()},
        "said": " | ".join(said.values()),
        "where": said["place"],
        "scene": "(a | an) <colour> <digit> <where>",
        "day": " | ".join(wordings.DAYS),
        "quality": " | ".join(word for pair in wordings.OPPOSITES for word in pair),
        "sentence": " | ".join(_sentences()),
    }
    lines = [f"<{name}> = {alternatives};" for name, alternatives in rules.items()]
    return "\n".join(
        ["#JSGF V1.0;", "grammar digits;", *lines, "public <speech> = <sentence>+;", ""]
    )


def _sentences() -> list[str]:
    """Answers with slots; forms that differ only before their slot share it: less work for the decoder."""
    shared: dict[str, list[str]] = {}
    for kind, forms in wordings.ANSWERS.items():
        slots = {"name": f"<{kind}>", "scene": "<scene>", "X": "<said>", "Y": "<said>"}
        slots |= {"Y": "<where>"} if kind == "place" else {}
        for form in forms:
            before, slot, after = form.format(**slots).rpartition("<")
            shared.setdefault(slot + after, []).append(before.strip())
    answers = [f"({' | '.join(starts)}) {end}" for end, starts in shared.items()]
    chat = [reply for _, replies in wordings.CHAT for reply in replies]
    drawn = [
        "<digit>", "<colour>", "<place>",  # the echo game
        "<digit> comes (after | before) <digit>",
        "<day> comes after <day>",
        "the opposite of <quality> is <quality>",
    ]  # fmt: skip
    return list(
        dict.fromkeys([*answers, *wordings.GREETINGS, *wordings.ACKNOWLEDGE, *chat, *drawn])
    )


def _pieces(
    kind: timing.Kind, n: int, facts: world.Facts, rng: np.random.Generator
) -> Sequence[Piece]:
    kinds = _LONG if kind == "interruption" else talk.KINDS
    text = talk.ask(kinds[n % len(kinds)], facts, rng).text
    if kind == "question":
        return [_OPENING if n % 2 else _LEAD, text, _ANSWER]
    if kind == "pause":
        words = text.split()
        half = len(words) // 2
        return [_LEAD, " ".join(words[:half]), _PAUSE, " ".join(words[half:]), _ANSWER]
    other = talk.ask(talk.ATTRIBUTES[n % 3], facts, rng).text  # type: ignore[arg-type]
    return [_LEAD, text, _BREAKS_IN, other, _ANSWER]


def _recording(
    name: str, kind: timing.Kind, pieces: Sequence[Piece], n: int, image: np.ndarray
) -> recordings.Recording:
    """Says the pieces one after the other; whole frames."""
    voice = voices.TEST_USERS[n % len(voices.TEST_USERS)]
    audio = np.concatenate(
        [
            speech.speak(piece, voice).samples
            if isinstance(piece, str)
            else np.zeros(round(piece * types.SAMPLE_RATE), np.float32)
            for piece in pieces
        ]
    )
    return recordings.Recording(
        name, kind, np.pad(audio, (0, -len(audio) % types.FRAME_SAMPLES)), image
    )
