"""Whether the speech says the text: speech recognition, word error rates, and the times of known words.

A recognizer is any callable from clips (float32 at 24 kHz) to their texts. Two are here: PocketSphinx, which
is weak but comes with its model in the wheel, and a command of the user's choice.
"""

from __future__ import annotations

import shlex
import shutil
import string
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mvjax import types
from mvjax.data.records import record
from mvjax.data.speech import spoken

Recognizer = Callable[[Sequence[np.ndarray]], list[str]]
Aligner = Callable[[np.ndarray, str], list[record.Word]]

_RATE, _HOP = 16_000, 0.01  # hertz; seconds of a frame of PocketSphinx's
_AROUND = 0.2  # seconds of silence before and after a clip, without which alignment may fail
_SILENT = ("<sil>", "(NULL)", "<s>", "</s>")
_NOISE = 0.003  # 50 dB below full scale; a third of it for times: it hides where quiet words end
_SHOWN = 300  # characters of a failed command's error


def pocketsphinx(
    grammar: str | None = None, pronunciations: Mapping[str, str] | None = None
) -> Recognizer:
    """Returns a recognizer for English by PocketSphinx 5.

    Args:
      grammar: in JSGF; what it does not allow cannot be heard. None: any English, by the language model of
        the wheel, with many more errors.
      pronunciations: phones (of CMUdict) of words that its dictionary has not.
    """
    # With a grammar, the search over the lattice took 26 times the time of all the rest, and found no better
    # paths.
    decoder = _decoder(pronunciations, **({"lm": None, "bestpath": False} if grammar else {}))
    if grammar:
        decoder.add_jsgf_string("grammar", grammar)
        decoder.activate_search("grammar")

    def hear(clip: np.ndarray) -> str:
        _listen(decoder, clip)
        found = decoder.hyp()
        return found.hypstr if found else ""

    return lambda clips: [hear(clip) for clip in clips]


def aligner(pronunciations: Mapping[str, str] | None = None) -> Aligner:
    """Returns what tells when each word of a text sounds in a clip (float32 at 24 kHz), in steps of 10 ms.

    It returns no word where PocketSphinx does not find the text. `pronunciations` as for `pocketsphinx`.
    """
    decoder = _decoder(pronunciations, lm=None)

    def align(clip: np.ndarray, text: str) -> list[record.Word]:
        decoder.set_align_text(_bare(text))
        _listen(decoder, np.pad(clip, round(_AROUND * types.SAMPLE_RATE)), _NOISE / 3)
        found = [part for part in decoder.seg() or () if part.word not in _SILENT]
        written = text.split()
        if len(found) != len(written):
            return []
        frames = [(part.start_frame, part.end_frame + 1) for part in found]
        edges = np.clip(np.array(frames) * _HOP - _AROUND, 0, len(clip) / types.SAMPLE_RATE)
        return [record.Word(w, *edge) for w, edge in zip(written, edges.tolist(), strict=True)]

    return align


def _decoder(pronunciations: Mapping[str, str] | None, **how: Any) -> Any:
    import pocketsphinx

    decoder = pocketsphinx.Decoder(loglevel="FATAL", cmn="batch", **how)
    for word, phones in (pronunciations or {}).items():
        decoder.add_word(word, phones, True)
    return decoder


def _listen(decoder: Any, clip: np.ndarray, noise: float = _NOISE) -> None:
    audio = spoken.resample(clip[None], types.SAMPLE_RATE, to=_RATE)[0]
    # Features of digital silence are erratic: the synthesizer, which has much of it, lost its last words.
    audio = audio + noise * np.random.default_rng(0).standard_normal(len(audio))
    decoder.reinit_feat()  # with normalization by clip: nothing depends on the clips before
    decoder.start_utt()
    decoder.process_raw((np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
    decoder.end_utt()


def command(line: str) -> Recognizer:
    """Returns a recognizer that runs a command once, with the paths of all clips (WAV, 24 kHz) as arguments.

    It prints one line a clip, in their order: what was said, empty if nothing. Raises ValueError if there is
    no such command.
    """
    words = shlex.split(line)
    if not words or shutil.which(words[0]) is None:
        raise ValueError(f"--asr {line!r}: there is no such command: {' '.join(words[:1])}")

    def hear(clips: Sequence[np.ndarray]) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{n:05d}.wav" for n in range(len(clips))]
            for path, clip in zip(paths, clips, strict=True):
                spoken.write_audio(path, np.clip(clip, -1, 1)[None])
            return _lines(line, [*words, *map(str, paths)], len(paths))

    return hear


def hear_all(recognizer: Recognizer, utterances: Sequence[Sequence[np.ndarray]]) -> list[str]:
    """Returns the text of each conversation of several utterances; one call of the recognizer."""
    heard = iter(recognizer([clip for clips in utterances for clip in clips]))
    return [
        " ".join(text for _, text in zip(clips, heard, strict=False) if text)
        for clips in utterances
    ]


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, Any]:
    """Returns the word error rate of all texts together, by jiwer, and what it is made of.

    (substitutions + deletions + insertions) / words of the references, in lower case without punctuation;
    None without a word.
    """
    import jiwer

    pairs = [(_bare(a), _bare(b)) for a, b in zip(references, hypotheses, strict=True)]
    words = sum(len(reference.split()) for reference, _ in pairs)
    if not words:
        return {"word_error_rate": None, "words": 0}
    out = jiwer.process_words([a for a, _ in pairs], [b for _, b in pairs])
    return {
        "word_error_rate": round(out.wer, 4),
        "words": words,
        "substitutions": out.substitutions,
        "deletions": out.deletions,
        "insertions": out.insertions,
    }


def _bare(text: str) -> str:
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def _lines(line: str, words: Sequence[str], expected: int) -> list[str]:
    """What the command prints, a line for each clip."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip()[-_SHOWN:] or "it printed no error"
        raise ValueError(
            f"--asr {line!r}: failed with status {error.returncode}: {said}"
        ) from error
    lines = done.stdout.splitlines()
    if len(lines) != expected:
        raise ValueError(
            f"--asr {line!r}: expected {expected} lines on its output, one for each file, got {len(lines)};"
            " docs/evaluation.md, 'Your own speech recognition', has an example"
        )
    return [text.strip() for text in lines]
