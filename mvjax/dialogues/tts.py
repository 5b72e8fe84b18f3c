"""Text to speech behind one interface: eSpeak NG, or any command; Kyutai's TTS is in `kyutai_tts`.

A command is a template such as

    piper --model voice.onnx --output_file {wav}             (reads the text from its standard input)
    my-tts --say {text} --voice {voice} --seed {seed} --out {wav} --times {json}

It writes a WAV (or FLAC, OGG, MP3) of any rate. If {json} is in the template, it also writes the times of
the text's words there, in seconds: [["is", 0.08, 0.21], ["it", 0.21, 0.30], ...]. Otherwise word times are
estimated from the numbers of letters: good enough for a trial, not to train a model.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np

from mvjax import types
from mvjax.data.records import record
from mvjax.data.speech import spoken
from mvjax.dialogues import conversation, espeak, speech

_LONGEST = 180.0  # seconds of one utterance; more is taken for a failed synthesis


@dataclasses.dataclass(frozen=True)
class TtsLine:
    """One utterance to synthesize."""

    text: str
    voice: str
    seed: int


@runtime_checkable
class Tts(Protocol):
    """A synthesizer: settings without state, as it is sent to other processes."""

    @property
    def assistant(self) -> str:
        """The assistant's voice."""
        ...

    @property
    def users(self) -> tuple[str, ...]:
        """The users' voices; one is drawn per dialogue."""
        ...

    def speak(self, lines: Sequence[TtsLine]) -> list[speech.SynthesizedSpeech]:
        """Synthesizes lines at 24 kHz with the times of their whitespace-separated words."""
        ...


@dataclasses.dataclass(frozen=True)
class Espeak:
    """eSpeak NG (`speech`): offline, quick, robotic; word times come from the synthesizer.

    A voice is a name such as "en-us+f2", and may add rate (words a minute) and pitch (0 to 99):
    "en-us+f2:185:60".
    """

    assistant: str = "en-us:180:45"
    users: tuple[str, ...] = (
        "en-us+m1:180:40", "en-us+m2:170:50", "en-us+m3:175:45", "en-us+m4:190:45", "en-us+m5:165:35",
        "en-us+m7:185:55", "en+m8:175:45", "en+f1:180:50", "en-us+f2:190:60", "en-us+f3:175:52",
        "en-us+f4:170:45", "en+f5:185:55", "en-gb-scotland+m3:175:48", "en-us+steph:180:50",
        "en-us+adam:180:45",
    )  # fmt: skip

    def speak(self, lines: Sequence[TtsLine]) -> list[speech.SynthesizedSpeech]:
        """Synthesizes lines in order; the seed has no effect, and samples vary as in `speech`."""
        return [speech.speak(line.text, self._voice(line.voice)) for line in lines]

    @classmethod
    def knows(cls, voice: str) -> bool:
        """Whether eSpeak NG has the voice."""
        return espeak.knows(cls._voice(voice))

    @staticmethod
    def _voice(text: str) -> speech.Voice:
        name, *numbers = text.split(":")
        try:
            return speech.Voice(name, **dict(zip(("rate", "pitch"), map(int, numbers))))
        except ValueError as error:
            raise ValueError(
                f"eSpeak NG voice: expected NAME[:RATE[:PITCH]] such as en-us+f2:185:60, got {text!r}"
            ) from error


@dataclasses.dataclass(frozen=True)
class Command:
    """Any program that writes an audio file; see the module's docstring."""

    template: str  # split as a shell would, without running one
    assistant: str = ""
    users: tuple[str, ...] = ("",)
    timeout: float = 300.0  # seconds for one utterance

    def __post_init__(self):
        if not any("{wav}" in word for word in shlex.split(self.template)[1:]):
            raise ValueError(
                "text-to-speech command: expected {wav} among its arguments, the file to write; got"
                f" {self.template!r}"
            )
        named = bool(self.assistant) and "" not in self.users
        if ("{voice}" in self.template) != named:
            raise ValueError(
                "text-to-speech command: expected voices of the assistant and the users with {voice} in the"
                f" template, and none without; got {self}"
            )

    def speak(self, lines: Sequence[TtsLine]) -> list[speech.SynthesizedSpeech]:
        """Runs the program once a line; ValueError if it fails, or writes no audio or other words' times."""
        return [self._one(line) for line in lines]

    def _one(self, line: TtsLine) -> speech.SynthesizedSpeech:
        with tempfile.TemporaryDirectory() as folder:
            wav, times = Path(folder, "said.wav"), Path(folder, "said.json")
            values = {
                "text": line.text, "voice": line.voice, "seed": line.seed, "wav": wav, "json": times
            }  # fmt: skip
            argv = shlex.split(self.template)
            for name, value in values.items():
                argv = [word.replace(f"{{{name}}}", str(value)) for word in argv]
            self._run(argv, "" if "{text}" in self.template else line.text)
            samples = spoken.read_audio(wav, channels=1, max_seconds=_LONGEST)[0]
            if "{json}" not in self.template:
                return speech.SynthesizedSpeech(samples, estimate(line.text, samples), ())
            words = _read_times(times, line.text, len(samples) / types.SAMPLE_RATE)
            return speech.SynthesizedSpeech(samples, words, ())

    def _run(self, argv: Sequence[str], text: str) -> None:
        try:
            done = subprocess.run(
                argv, input=text.encode(), capture_output=True, timeout=self.timeout, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            message = f"text-to-speech command {argv[0]!r}: cannot be run: {error}"
            raise ValueError(message) from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[-300:]
            status = f"exit status {done.returncode}: {said}"
            raise ValueError(f"text-to-speech command {argv[0]!r}: {status}")


def estimate(text: str, samples: np.ndarray) -> tuple[record.Word, ...]:
    """Estimates word times by numbers of letters, over the part that is not silent."""
    first, last = conversation.sounding(samples)
    words = text.split()
    letters = np.cumsum([0] + [len(word) + 1 for word in words])
    edges = (first + (last - first) * letters / letters[-1]) / types.SAMPLE_RATE
    return tuple(record.Word(w, float(a), float(b)) for w, a, b in zip(words, edges, edges[1:]))


def _read_times(path: Path, text: str, seconds: float) -> tuple[record.Word, ...]:
    """Reads the word times that a command wrote, and checks them against text and audio."""
    if not path.is_file():
        raise ValueError(f"text-to-speech command: expected word times in {path.name}, got no file")
    try:
        times = msgspec.json.decode(path.read_bytes(), type=list[tuple[str, float, float]])
    except msgspec.MsgspecError as error:
        raise ValueError(f"word times: expected [[word, start, end], ...]: {error}") from error
    if [word for word, _, _ in times] != text.split():
        raise ValueError(
            f"word times: expected one for each of {text.split()}, got {[w for w, _, _ in times]}"
        )
    edges = [0.0, *(t for _, start, end in times for t in (start, end)), seconds + 0.1]
    if any(b < a for a, b in itertools.pairwise(edges)):
        raise ValueError(f"word times: expected them in order within {seconds:.2f} s, got {times}")
    return tuple(record.Word(w, a, min(b, seconds)) for w, a, b in times)
