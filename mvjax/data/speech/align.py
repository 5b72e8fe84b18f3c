"""Word times for speech without them: an aligner transcribes one speaker with the time of each word."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from mvjax import types
from mvjax.data.ingest import items, moshi_finetune
from mvjax.data.records import record
from mvjax.data.speech import spoken

_WHISPER_RATE = 16_000
_GIVE_UP = 10  # files that fail, if none was aligned
_VAD_FROM = 10.0  # seconds; voice activity detection for longer audio only, as in annotate.py

# The words of one speaker's audio at 24 kHz with their times, in order of start.
Aligner = Callable[[np.ndarray], tuple[record.Word, ...]]


@dataclasses.dataclass(frozen=True)
class WhisperTimestamped:
    """The package whisper-timestamped (extra `align`), with the settings that moshi-finetune annotates with.

    Source: moshi-finetune `annotate.py`, `process_one`. Differs: the silence that it adds back around
    the detected speech is left out, as it needs a function of the package replaced.
    """

    model: str = "medium"  # a Whisper size, downloaded once, or a checkpoint's path
    language: str | None = "en"  # None: detect it
    device: str = "cpu"  # of PyTorch

    def __call__(self, samples: Float32[np.ndarray, " samples"]) -> tuple[record.Word, ...]:
        """Transcribes, as `Aligner`; ModuleNotFoundError without the package."""
        package, model = _whisper(self.model, self.device)
        audio = spoken.resample(samples[None], types.SAMPLE_RATE, to=_WHISPER_RATE)[0]
        seconds = len(samples) / types.SAMPLE_RATE
        result = package.transcribe(
            model,
            audio,
            language=self.language,
            vad="auditok" if seconds > _VAD_FROM else None,
            best_of=5,
            beam_size=5,
            temperature=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
            verbose=None,
        )
        words = [
            record.Word(word["text"].strip(), float(word["start"]), float(word["end"]))
            for segment in result["segments"]
            for word in segment.get("words", ())
            if word["text"].strip()
        ]
        return spoken.fit_words(seconds, sorted(words, key=lambda word: word.start))[0]


def annotate(dialogue: spoken.Spoken, aligner: Aligner, *, user: bool = False) -> spoken.Spoken:
    """Returns the dialogue with word times of the assistant (and the user) where they are missing.

    A missing transcript is made from the words.
    """
    words, user_words = dialogue.words, dialogue.user_words
    if words is not None and (user_words is not None or not user):
        return dialogue
    assistant_side, user_side = dialogue.samples()
    if words is None:
        words = aligner(assistant_side)
    if user and user_words is None:
        user_words = aligner(user_side)
    turns = dialogue.turns or spoken.turns_of(words, user_words)
    return dataclasses.replace(dialogue, words=words, user_words=user_words, turns=turns)


def annotate_files(
    source: Path,
    aligner: Aligner,
    *,
    skips: items.SkippedItems,
    user: bool = True,
    progress: Callable[[str], None] = lambda name: None,
) -> int:
    """Writes the transcript beside each audio file of a moshi-finetune dataset that has none.

    `source` is a jsonl or a folder of them; `progress` is called with each id. What cannot be read, has no
    speech, or makes the aligner fail goes to `skips`. Returns the number of transcripts written; a second run
    continues. Raises NothingRead if the aligner fails on the first ten files, or on all.
    """
    count = failed = 0
    for dialogue in moshi_finetune.read(source, skips=skips, untranscribed=True):
        if dialogue.words is not None or not isinstance(dialogue.audio, Path):
            continue
        progress(dialogue.id)
        try:
            heard = annotate(dialogue, aligner, user=user)
        except (ImportError, MemoryError):  # not about this file
            raise
        except Exception as error:
            skips.add(dialogue.id, "not aligned", f"{type(error).__name__}: {error}")
            failed += 1
            if failed == _GIVE_UP and not count:
                break
            continue
        if not heard.turns:
            skips.add(dialogue.id, "empty transcript", dialogue.audio)
        moshi_finetune.save_transcript(dialogue.audio.with_suffix(".json"), heard)
        count += 1
    if failed and not count:
        skips.refuse_nothing_read(source)
    return count


@functools.lru_cache(maxsize=1)
def _whisper(name: str, device: str) -> tuple[Any, Any]:
    try:
        import whisper_timestamped  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'word times: expected whisper-timestamped; pip install "mvjax[align]", or give word'
            " times with the data"
        ) from error
    return whisper_timestamped, whisper_timestamped.load_model(name, device=device)
