"""Conversation health of a trained model beside plain Moshi: everything measured, as JSON and as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mvjax import types
from mvjax.data import images as images_lib
from mvjax.dialogues import speech
from mvjax.eval import model as eval_model
from mvjax.eval.health import conversations, leak, quality, recognize, recordings, timing

PLAIN, SEEING = "plain", "image"  # plain Moshi; the trained model with the image in view


@dataclasses.dataclass(frozen=True)
class Questions:
    """What users say: about the image they see, and about something else while it is in view."""

    about: Sequence[recordings.Recording]
    unrelated: Sequence[recordings.Recording]


@dataclasses.dataclass(frozen=True)
class SpeechCheck:
    """How the model's speech is checked; `voice` says the same texts, as the ceiling (None: no ceiling)."""

    recognizer: recognize.Recognizer
    name: str  # of the recognizer
    voice: speech.Voice | None
    quality: bool  # DNSMOS, too


@dataclasses.dataclass(frozen=True)
class Health:
    """The result as JSON values, and the conversations by column."""

    result: dict[str, Any]
    held: dict[str, list[conversations.Conversation]]


def examine(
    model: eval_model.LoadedModel,
    questions: Questions,
    check: SpeechCheck,
    draws: conversations.Draws = conversations.Draws(),
) -> Health:
    """Holds every conversation as plain Moshi and with the image in view, and measures both."""
    params = leak.plain_params(model.config, model.params)
    plain = dataclasses.replace(model, params=params)
    sides = {PLAIN: (plain, False), SEEING: (model, True)}
    held, aside, times = {}, {}, {}
    for name, (which, sees) in sides.items():
        everyone = [*questions.about, *questions.unrelated]  # at once: one shape, compiled once
        talks = conversations.hold(which, everyone, sees=sees, draws=draws)
        held[name], aside[name] = talks[: len(questions.about)], talks[len(questions.about) :]
        free = conversations.undisturbed(which, talks, sees=sees, draws=draws)[: len(held[name])]
        times[name] = timing.summary([c.channels for c in held[name]], free)
    result = {
        "draws": dataclasses.asdict(draws),
        "timing": times,
        "identity": _identity(plain, model, [*held[PLAIN], *aside[PLAIN]], draws),
        "leak": leak.leak(plain, model, aside[PLAIN], aside[SEEING]),
        "speech": _speech(model, held, check),
    }
    return Health(result, {name: [*held[name], *aside[name]] for name in sides})


def samples(health: Health) -> list[dict[str, Any]]:
    """Returns a JSON object for each conversation: who spoke when, and what the model wrote."""
    return [
        {
            "id": c.recording.id,
            "mode": name,
            "kind": c.recording.kind,
            "said": c.said,
            "seconds": round(c.channels.seconds, 2),
            "user": _rounded(c.channels.user),
            "assistant": _rounded(c.channels.assistant),
        }
        for name, held in health.held.items()
        for c in held
    ]


def _identity(
    plain: eval_model.LoadedModel,
    model: eval_model.LoadedModel,
    held: Sequence[conversations.Conversation],
    draws: conversations.Draws,
) -> dict[str, Any]:
    """Over 1,000 frames: what the users said, one after the other and again from the start."""
    codes = np.concatenate([c.user_codes for c in held], axis=1)
    codes = np.resize(codes.T, (leak.IDENTITY_FRAMES, len(codes))).T
    pixels = images_lib.normalize(held[0].recording.image)[None]
    return leak.identity(
        model.config.model,
        plain.params,
        model.params,
        np.ascontiguousarray(codes),
        pixels,
        draws=draws,
    )


def _speech(
    model: eval_model.LoadedModel,
    held: dict[str, list[conversations.Conversation]],
    check: SpeechCheck,
) -> dict[str, Any]:
    """Word error rates and quality: of the model's speech, and of the ceiling before and after the codec."""
    spoken = {
        name: ([c.said for c in talks], [c.utterances for c in talks])
        for name, talks in held.items()
    }
    if check.voice is not None:
        whole = [
            c for c in held[SEEING] if len(c.channels.replies) == 1
        ]  # the text is one utterance
        texts = list(dict.fromkeys(c.said for c in whole if c.said))
        clips = [_framed(speech.speak(text, check.voice).samples) for text in texts]
        spoken["synthesizer"] = (texts, [[clip] for clip in clips])
        coded = model.decode_audio(model.encode_audio(clips)) if clips else []
        spoken["synthesizer_codec"] = (texts, [[clip] for clip in coded])
    found: dict[str, Any] = {"recognizer": check.name}
    for name, (texts, utterances) in spoken.items():
        heard = recognize.hear_all(check.recognizer, utterances)
        found[name] = recognize.word_errors(texts, heard)
        found[name]["mismatched"] = recognize.word_errors([*texts[1:], *texts[:1]], heard)[
            "word_error_rate"
        ]
    if check.quality:
        found["dnsmos_note"] = quality.NOTE
        for name, (_, utterances) in spoken.items():
            found[name]["dnsmos"] = quality.dnsmos([clip for clips in utterances for clip in clips])
    return found


def _framed(samples: np.ndarray) -> np.ndarray:
    """With 0.2 s of silence around it, as utterances have it that are cut out of a conversation."""
    around = types.SAMPLE_RATE // 5
    return np.pad(samples, (around, around))


def _rounded(spans: Sequence[timing.Span]) -> list[list[float]]:
    return [[round(a, 2), round(b, 2)] for a, b in spans]
