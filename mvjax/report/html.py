"""Writes a run as one self-contained HTML page: every picture and sound is inside the file."""

from __future__ import annotations

import base64
import dataclasses
import io
import wave
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from mvjax import types
from mvjax.data import images

MODES = {  # order and headings of the accuracy table
    "text": "Written",
    "audio": "Spoken",
    "blind": "Blind",
    "shuffled": "Shuffled",
    "chance": "Guessing",
}


@dataclasses.dataclass(frozen=True)
class Tile:
    """One headline number: `bar` says what was asked for, `met` whether it holds (None: no bar)."""

    name: str
    value: str
    bar: str = ""
    met: bool | None = None


@dataclasses.dataclass(frozen=True)
class ReportExample:
    """A test image with its spoken question and the model's answer.

    Attributes:
      image: uint8 [height, width, 3].
      scene: the image in words.
      voice: who asks.
      question_audio: float32 [n] at 24 kHz, as the codec hands it to the model.
      answer_audio: float32 [n] at 24 kHz, as decoded from the model's codes.
    """

    kind: str
    image: np.ndarray
    scene: str
    voice: str
    question: str
    question_audio: np.ndarray
    said: str
    answer_audio: np.ndarray
    correct: bool


@dataclasses.dataclass(frozen=True)
class Picture:
    """A plot (PNG bytes) with its text alternative, and what to say or hear beside it."""

    png: bytes
    alt: str
    text: str = ""
    audio: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Certificate:
    """One runtime's agreement with the JAX model."""

    name: str
    error: float
    tolerance: float
    frames: int
    passed: bool


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one stage of the run took."""

    name: str
    seconds: float
    peak_gb: float


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything on the page, in page order; `accuracy` rows are those of `metrics.table`."""

    title: str
    subtitle: str
    tiles: Sequence[Tile]
    examples: Sequence[ReportExample]
    accuracy: Sequence[Mapping[str, Any]]
    gate: Picture
    trained: Sequence[tuple[str, str]]
    loss: Picture
    certificates: Sequence[Certificate]
    codec: Sequence[tuple[str, int, float]]  # (speech, words, share heard)
    stages: Sequence[Stage]
    footer: str


def write(path: Path, report: Report) -> None:
    """Renders the report to one HTML file."""
    path.write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """Returns the page."""
    import jinja2

    source = resources.files("mvjax.report").joinpath("templates/report.html")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    present = [key for key in MODES if report.accuracy and key in report.accuracy[0]]
    return environment.from_string(source.read_text(encoding="utf-8")).render(
        title=report.title,
        subtitle=report.subtitle,
        tiles=report.tiles,
        examples=[_example(e) for e in report.examples],
        modes=[{"key": key, "label": MODES[key]} for key in present],
        accuracy=report.accuracy,
        gate=_picture(report.gate),
        trained=report.trained,
        loss=_picture(report.loss),
        certificates=[_certificate(c) for c in report.certificates],
        codec=[{"name": name, "n": n, "share": share} for name, n, share in report.codec],
        stages=report.stages,
        footer=report.footer,
    )


def wav_bytes(samples: np.ndarray) -> bytes:
    """A 16-bit mono WAV file of float samples [n] in [-1, 1] at 24 kHz."""
    clipped = np.clip(np.nan_to_num(np.asarray(samples, np.float64)), -1, 1)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(types.SAMPLE_RATE)
        file.writeframes(np.rint(clipped * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _sound(samples: np.ndarray) -> str:
    return _uri("audio/wav", wav_bytes(samples))


def _example(example: ReportExample) -> dict[str, Any]:
    fields = {f.name: getattr(example, f.name) for f in dataclasses.fields(example)}
    return fields | {
        "image": _uri("image/png", images.encode_png(example.image)),
        "question_audio": _sound(example.question_audio),
        "answer_audio": _sound(example.answer_audio),
    }


def _picture(picture: Picture) -> dict[str, str | None]:
    return {
        "plot": _uri("image/png", picture.png),
        "alt": picture.alt,
        "text": picture.text,
        "audio": None if picture.audio is None else _sound(picture.audio),
    }


def _certificate(certificate: Certificate) -> dict[str, Any]:
    return {
        "name": certificate.name,
        "error": f"{certificate.error:.1e}",
        "tolerance": f"{certificate.tolerance:.0e}",
        "frames": certificate.frames,
        "passed": certificate.passed,
    }
