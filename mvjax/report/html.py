"""Writes a report as one self-contained HTML page: images, plots and sounds are inside the file."""

from __future__ import annotations

import base64
import dataclasses
import io
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mvjax import types
from mvjax.data import images
from mvjax.report import plots

if TYPE_CHECKING:
    import jinja2

MODES = {  # order and headings of the accuracy table
    "text": "Written",
    "audio": "Spoken",
    "blind": "Blind",
    "shuffled": "Shuffled",
    "chance": "Guessing",
}


@dataclasses.dataclass(frozen=True)
class Tile:
    """One headline number with its target, if any, and whether it is met (None: not judged)."""

    name: str
    value: str
    target: str = ""
    met: bool | None = None


@dataclasses.dataclass(frozen=True)
class ReportExample:
    """A test image with its spoken question and the model's answer, decoded from codes at 24 kHz."""

    image: np.ndarray  # uint8 [height, width, 3]
    scene: str  # the image in words
    voice: str  # who asks
    question: str
    question_audio: np.ndarray  # float32 [n], as the model receives it
    said: str
    answer_audio: np.ndarray  # float32 [n]
    correct: bool


@dataclasses.dataclass(frozen=True)
class ExampleKind:
    """Right and wrong answers to one kind of question, beside each other, and how many were right."""

    name: str
    right: int
    n: int
    examples: Sequence[ReportExample]


@dataclasses.dataclass(frozen=True)
class Share:
    """A share in [0, 1] with the ends of its 95% interval; None: it is exact."""

    value: float
    interval: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class AccuracyRow:
    """One kind of question, or all: the accuracy in each mode of `MODES`, None where it was not asked."""

    kind: str
    n: int
    shares: Mapping[str, Share | None]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A plot with its text alternative, paragraphs and a sound to go with it."""

    plot: plots.Plot
    alt: str
    text: str = ""
    audio: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Certificate:
    """One runtime's agreement with the JAX model over greedy frames; errors are of the logits.

    Attributes:
      error, frames: None if its computation was not run.
      verdict: "pass", "lossy", "not run" or "fail".
      notes: what is to be said below the table.
    """

    name: str
    error: float | None
    tolerance: float
    frames: int | None
    verdict: str
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class SaidSentence:
    """One sentence as several speakers say it: {speaker: float32 [n] at 24 kHz}."""

    text: str
    sounds: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Wall-clock time of one stage and the peak memory so far, in units of 1e9 bytes."""

    name: str
    seconds: float
    peak_gb: float


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything on the page, in page order."""

    title: str
    subtitle: str
    tiles: Sequence[Tile]
    examples: Sequence[ExampleKind]
    accuracy: Sequence[AccuracyRow]  # the last one is the mean of the others
    gate: Picture
    trained: Sequence[tuple[str, str]]
    loss: Picture
    certificates: Sequence[Certificate]
    codec: Sequence[tuple[str, int, Share]]  # (speech, number of words, accuracy)
    voices: Sequence[SaidSentence]  # of the same speakers each
    stages: Sequence[Stage]
    continued: bool  # the run began in an earlier session, whose time is not in `stages`
    footer: str


def write(path: Path, report: Report) -> None:
    """Renders the report to one HTML file."""
    path.write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """Returns the page."""
    rows = report.accuracy
    present = {key: MODES[key] for key in MODES if rows and key in rows[0].shares}
    return environment().get_template("report.html").render(vars(report), modes=present)


def environment() -> jinja2.Environment:
    """Returns what renders the templates; images, plots and sounds become data: URIs."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    )
    environment.filters["svg_uri"] = lambda svg: _uri("image/svg+xml", svg.encode())
    environment.filters["image_uri"] = lambda image: _uri("image/png", images.encode_png(image))
    environment.filters["wav_uri"] = lambda samples: _uri("audio/wav", wav_bytes(samples))
    return environment


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
