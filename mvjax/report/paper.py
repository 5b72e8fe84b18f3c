"""The numbers of the MoshiVis paper (arXiv 2503.15633) that studies are put beside, and where they are from.

"digitized": read off a figure's vector coordinates, to about 0.2 points or 0.001 of a ratio; "confirmed":
printed there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from mvjax import messages

# Of ours, those whose benchmark is the paper's, by the beginning of their names.
SAME = ("coco", "vqav2", "ocr-vqa", "babillage", "mmlu")

NOT_PUBLISHED = (
    "The paper publishes neither lead-in, tail and length of answers, nor how an answer is cut out of the"
    " talk and normalized: equal benchmarks are not yet equal protocols."
)


@dataclasses.dataclass(frozen=True)
class Line:
    """One curve of a figure."""

    panel: str
    series: str
    x: Sequence[float]
    y: Sequence[float]


@dataclasses.dataclass(frozen=True)
class PaperNumbers:
    """One table, or the curves of one figure."""

    title: str
    status: Literal["confirmed", "digitized"]
    note: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    x_label: str = ""
    y_label: str = ""
    lines: Sequence[Line] = ()


def find(name: str) -> PaperNumbers:
    """Returns the numbers of a name that a study gives.

    Raises:
      ValueError: for an unknown name.
    """
    if name not in NUMBERS:
        raise ValueError(f"study: paper: unknown {name!r}; {messages.did_you_mean(name, NUMBERS)}")
    return NUMBERS[name]


def is_same(benchmark: str) -> bool:
    """Whether the paper has results of a benchmark of this name."""
    return benchmark.replace("_", "-").startswith(SAME)


_RATIO_HEAD = (
    "speech, %",
    "OCR text",
    "OCR audio",
    "VQA text",
    "VQA audio",
    "CIDEr text",
    "CIDEr audio",
)
_RATIO: Mapping[int, Sequence[float | None]] = {
    0: (65.4, 38.5, 72.0, 49.3, 123.6, 97.9),
    1: (None, None, None, None, 121.4, 113.0),
    5: (None, None, None, None, 126.1, 115.1),
    10: (66.9, 61.7, 77.5, 64.0, 126.2, 119.6),
    25: (68.4, 64.6, 79.2, 70.9, 125.8, 122.7),
    50: (66.5, 65.8, 74.8, 71.7, 126.0, 125.3),
    75: (42.6, 65.9, 71.3, 70.5, 125.4, 122.1),
    100: (10.9, 66.1, 19.3, 70.8, 75.2, 123.3),
}
_TURNS = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0)
_SWITCH = {  # (direction, p_concat): {design: ratio at each of _TURNS}
    ("image to other", "0"): {
        "no gate": (0.793, 0.794, 0.795, 0.785, 0.775, 0.769),
        "gate": (0.898, 0.897, 0.895, 0.888, 0.880, 0.879),
        "gate shared": (0.887, 0.897, 0.888, 0.885, 0.880, 0.875),
    },
    ("image to other", "0.5"): {
        "no gate": (0.857, 0.878, 0.873, 0.866, 0.850, 0.844),
        "gate": (0.894, 0.891, 0.881, 0.882, 0.876, 0.873),
        "gate shared": (0.917, 0.927, 0.925, 0.924, 0.914, 0.909),
    },
    ("other to image", "0"): {
        "no gate": (1.0, 0.942, 0.944, 0.946, 0.948, 0.938),
        "gate": (1.0, 0.991, 0.971, 0.983, 0.979, 0.967),
        "gate shared": (1.0, 0.995, 1.007, 1.019, 1.023, 1.005),
    },
    ("other to image", "0.5"): {
        "no gate": (1.0, 0.950, 0.974, 1.004, 1.025, 1.022),
        "gate": (1.0, 0.987, 1.006, 1.025, 1.060, 1.076),
        "gate shared": (1.0, 0.974, 0.990, 1.012, 1.036, 1.033),
    },
}


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _ratio_lines() -> list[Line]:
    lines = []
    for i, name in enumerate(_RATIO_HEAD[1:]):
        panel, mode = name.split()
        known = [(float(x), row[i]) for x, row in _RATIO.items() if row[i] is not None]
        lines.append(Line(panel, mode, [x for x, _ in known], [float(y or 0) for _, y in known]))
    return lines


NUMBERS: Mapping[str, PaperNumbers] = {
    "speech_ratio": PaperNumbers(
        "Paper, figure 4: score against the share of speech",
        "digitized",
        "OCR-VQA accuracy, VQAv2 accuracy and COCO CIDEr of single-task models, 7 B. The shape to"
        " reproduce: audio scores rise fast to 10-25% and flatten; text scores collapse at 100%. At 0% the"
        " paper's text gives 113 for CIDEr audio, the figure 97.9.",
        head=_RATIO_HEAD,
        rows=[(str(x), *map(_shown, row)) for x, row in _RATIO.items()],
        x_label="speech rows, % of all rows",
        y_label="score",
        lines=_ratio_lines(),
    ),
    "gate_ablation": PaperNumbers(
        "Paper, tables 4 and 6: gate and sharing",
        "confirmed",
        "OCR-VQA accuracy and COCO CIDEr of single-task models, 7 B, without a spread; norms before"
        " cross-attention are never shared. No clear winner.",
        head=(
            "gate / cross-attention sharing",
            "OCR text",
            "OCR audio",
            "CIDEr text",
            "CIDEr audio",
        ),
        rows=(
            ("no gate / nothing shared", "66.1", "63.7", "126", "125"),
            ("per-layer gate / KV shared", "67.7", "66.2", "127", "123"),
            ("per-layer gate / QKV shared (default)", "68.2", "64.7", "126", "124"),
            ("shared gate / KV shared", "67.5", "64.7", "126", "124"),
            ("shared gate / QKV shared", "66.1", "65.2", "124", "122"),
        ),
    ),
    "context_switch": PaperNumbers(
        "Paper, figure 5: score after talk about something else",
        "digitized",
        "Image to other: MMLU after a conversation about an image, relative to Moshi without an image."
        " Other to image: COCO after unrelated talk, relative to the same model without it. 7 B.",
        head=("direction", "p_concat", "design", *(f"after {turns:g}" for turns in _TURNS)),
        rows=[
            (direction, p, design, *(f"{y:.3f}" for y in ys))
            for (direction, p), designs in _SWITCH.items()
            for design, ys in designs.items()
        ],
        x_label="question-answer turns before",
        y_label="relative score",
        lines=[
            Line(direction, f"{design}, p_concat {p}", _TURNS, ys)
            for (direction, p), designs in _SWITCH.items()
            for design, ys in designs.items()
        ],
    ),
}
