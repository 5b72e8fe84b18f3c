"""hibari (PyPI `hibari-tts`): one natural American voice on one core, word times from its own durations.

The network lays each phoneme out over a whole number of 25 ms units before it predicts spectra; that tensor
is made an output of its ONNX graph. Numbers, abbreviations and heteronyms are read as hibari's text rules
say, which change the text's words ("5km" is two, "$3 billion" three): those times are put together again for
the words of the text. Users speak with eSpeak NG, as hibari's other voices are downloads.
Source: hibari/tts.py, hibari/g2p/__init__.py and the graph of hibari/assets/hibari.onnx (0.2.1).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mvjax import types
from mvjax.data.records import record
from mvjax.dialogues import conversation, speech, tts

VOICE = "heart"  # the only one inside the package
MODULE = "hibari"
_DURATIONS = "/Round_output_0"  # float32 [ids]: units that each id lasts
_UNIT = 600 / types.SAMPLE_RATE  # seconds: two of the network's frames
_EARLY = 3  # units by which the voice is ahead of its durations, as Kokoro is, which it imitates
_MOST_PHONEMES = 400  # at once, as in hibari: the memory that a text takes is bounded
_CLAUSE = re.compile(r"(?<=[,;:—])\s+")
_PAUSES = frozenset(';:,.!?—…"“”() ')  # of hibari's alphabet: they last, but are no sound of a word

_MARKS = "$£€.,;:!?…—-\"'“”‘’()[]"

Span = tuple[float, float]  # (start, end) in seconds


@dataclasses.dataclass(frozen=True)
class Hibari:
    """hibari for the assistant; any other voice is one of eSpeak NG (`tts.Espeak`)."""

    assistant: str = VOICE
    users: tuple[str, ...] = tts.Espeak.users

    def __post_init__(self):
        for voice in {self.assistant, *self.users} - {VOICE, *tts.Espeak.users}:
            if not tts.Espeak.knows(voice):
                raise ValueError(
                    f"hibari: expected its only voice, {VOICE}, or one of eSpeak NG such as en-us or"
                    f" en-us+f2, got {voice!r}"
                )

    def speak(self, lines: Sequence[tts.TtsLine]) -> list[speech.SynthesizedSpeech]:
        """Synthesizes lines in order; the same text and seed give the same samples, whatever came before.

        Raises:
          ModuleNotFoundError: without `hibari-tts`, if its voice is asked for.
          ValueError: if nothing in a text can be said, or eSpeak NG does not know the voice.
        """
        espeak = tts.Espeak()
        return [
            synthesize(line.text, line.seed) if line.voice == VOICE else espeak.speak([line])[0]
            for line in lines
        ]


def synthesize(text: str, seed: int) -> speech.SynthesizedSpeech:
    """Says `text`; `seed` draws the noise of breath and fricatives. Raises as `Hibari.speak`."""
    model = _load()
    rng = np.random.default_rng(seed)
    sounds: list[np.ndarray] = []
    words: list[record.Word] = []
    phonemes: list[record.Word] = []
    seconds, left = 0.0, text.split()
    for sentence in model.split_sentences(text):
        written, left = left[: len(sentence.split())], left[len(sentence.split()) :]
        read = _read(model, sentence)
        times: dict[int, Span] = {}
        for symbols, owners in _chunks(read):
            samples, spans = _say(model, symbols, rng, seconds)
            for n, (symbol, owner, span) in enumerate(zip(symbols, owners, spans, strict=True)):
                phonemes.append(record.Word("_" if symbol in _PAUSES else symbol, *span))
                between = symbol == " " and n and symbols[n - 1] not in _PAUSES
                if symbol not in _PAUSES or between:
                    times[owner] = (times.get(owner, span)[0], span[1])
            sounds.append(samples)
            seconds += len(samples) / types.SAMPLE_RATE
        at = words[-1].end if words else 0.0
        words += _times(written, read.words, _filled(times, len(read.words), at))
    if all(phoneme.text == "_" for phoneme in phonemes):
        raise ValueError(f"speak: expected text with at least one word that is said, got {text!r}")
    return speech.SynthesizedSpeech(
        np.clip(np.concatenate(sounds), -1, 1), tuple(words), tuple(phonemes)
    )


@dataclasses.dataclass(frozen=True)
class _Read:
    """A sentence as it is read: its words after the text rules, phonemes, and the word of each phoneme."""

    words: list[str]
    symbols: str
    owners: list[int]


def _read(model: Any, sentence: str) -> _Read:
    from hibari.g2p import normalize

    words, symbols, owners = [""], "", []
    try:
        tokens = model.g2p.phonemize_tokens(model.g2p.tokenize(normalize(sentence)))
    except LookupError as error:  # such as of numbers past its largest word
        raise ValueError(
            f"speak: hibari's text rules cannot read {sentence!r}; write it in words"
        ) from error
    for token in tokens:
        words[-1] += token.text
        said = (token.phonemes or "") + (" " if token.whitespace else "")
        symbols += said
        owners += [len(words) - 1] * len(said)
        if token.whitespace:
            words.append("")
    known = [n for n, symbol in enumerate(symbols) if symbol in model.vocab]
    return _Read(words, "".join(symbols[n] for n in known), [owners[n] for n in known])


def _chunks(read: _Read) -> Iterator[tuple[str, list[int]]]:
    """Cuts phonemes where hibari does: after a clause if there are too many, else between two words."""
    start = len(read.symbols) - len(read.symbols.lstrip())
    stop = len(read.symbols.rstrip())
    while start < stop:
        most = start + _MOST_PHONEMES
        end = after = stop
        if stop > most:
            cuts = [m.span() for m in _CLAUSE.finditer(read.symbols, start, most + 1)]
            space = read.symbols.rfind(" ", start + 1, most + 1)
            end, after = cuts[-1] if cuts else (space, space + 1) if space > 0 else (most, most)
        yield read.symbols[start:end], read.owners[start:end]
        start = after


def _say(
    model: Any, symbols: str, rng: np.random.Generator, begin: float
) -> tuple[np.ndarray, list[Span]]:
    """Samples of at most `_MOST_PHONEMES` phonemes, and when each sounds; the first sample is at `begin`."""
    from hibari import dsp

    ids = np.asarray([model.ids(symbols)], np.int64)
    speed = np.ones(1, np.float32)
    *found, durations = model.sess.run(None, {"ids": ids, "speed": speed})
    lh, th, ln, lr, phi, f0 = (part[0] for part in found)
    samples = dsp.synth(lh, th, ln, lr, phi, f0, rng)
    # Edges of the silence at the start, then of each phoneme.
    edges = _UNIT * np.maximum(np.cumsum(durations, dtype=np.float64) - _EARLY, 0)
    spans = []
    for n, (first, last) in enumerate(itertools.pairwise(edges[:-1])):
        follows = symbols[n + 1 : n + 2]
        if symbols[n] not in _PAUSES and (not follows or follows in _PAUSES - {" "}):
            last = min(last, max(first, _sounds_until(samples, last)))
        spans.append((float(begin + first), float(begin + last)))
    return samples, spans


def _sounds_until(samples: np.ndarray, end: float) -> float:
    """Seconds until the sound before `end` is over: the last phoneme's duration has much of a pause in it."""
    _, last = conversation.sounding(samples[: round(end * types.SAMPLE_RATE)])
    return last / types.SAMPLE_RATE


def _filled(times: dict[int, Span], count: int, at: float) -> list[Span]:
    """The span of each word; one without a sound takes no time after the word before it."""
    spans = []
    for n in range(count):
        spans.append(times.get(n, (at, at)))
        at = spans[-1][1]
    return spans


def _times(written: Sequence[str], read: Sequence[str], spans: Sequence[Span]) -> list[record.Word]:
    """Times of the words as written, from those of the words as read."""
    edges: list[Span] = []
    sides = (_bare(written), _bare(read))
    matcher = difflib.SequenceMatcher(None, *sides, autojunk=False)
    for _, a, b, c, d in matcher.get_opcodes():
        if a == b:  # said, but written with the word before ("$3" is "3 dollars"), or after
            if edges:
                edges[-1] = (edges[-1][0], spans[d - 1][1])
        elif b - a == d - c:
            edges += spans[c:d]
        else:  # one word read as several and the like: by letters
            first, last = (spans[c][0], spans[d - 1][1]) if d > c else (spans[c - 1][1],) * 2
            letters = np.cumsum([0] + [len(word) for word in written[a:b]])
            shares = first + (last - first) * letters / letters[-1]
            edges += [(float(x), float(y)) for x, y in itertools.pairwise(shares)]
    return [record.Word(word, *edge) for word, edge in zip(written, edges, strict=True)]


def _bare(words: Sequence[str]) -> list[str]:
    """Words to compare: in lower case, without punctuation if something is left."""
    return [word.lower().strip(_MARKS) or word for word in words]


@functools.cache
def _load() -> Any:
    """The network with its durations as an output, on one thread."""
    try:
        from hibari import tts as hibari
        from hibari import voices
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"voice {VOICE!r}: expected the package hibari-tts, got none ({error}): pip install"
            " 'mvjax[hibari]', or take eSpeak NG (--tts espeak)",
            name=error.name,
        ) from error
    with open(voices.voice_path(VOICE, download_missing=False), "rb") as file:
        graph = file.read()
    return hibari.Hibari(voice=VOICE, model=graph + _output(_DURATIONS), threads=1)


def _output(name: str) -> bytes:
    """What makes a tensor an output of a serialized ONNX model that it is appended to.

    Protocol buffers that follow each other are merged: ModelProto.graph (7) .output (12) .name (1).
    """
    message = name.encode()
    for field in (1, 12, 7):
        message = bytes([field << 3 | 2, len(message)]) + message
    return message
