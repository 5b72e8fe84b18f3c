"""A record's timeline as a PNG: the image, who speaks when, and the text stream frame by frame."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from mvjax import types
from mvjax.data import images
from mvjax.data.inspect import timeline

_COLUMNS = 100  # cells a row: 8 s
_MOST_ROWS = 40  # 320 s; the rest is left out, and the picture says so
_WIDTH, _ROW, _HEAD = 15.0, 1.5, 3.2  # inches
_COLORS = {
    timeline.PAD: "#eef1f5",
    timeline.EPAD: "#f2b950",
    timeline.ABSENT: "#ffffff",
    timeline.TOKEN: "#9dbdf5",
    timeline.LEARNED: "#8fd6ae",
    timeline.CONTROL: "#d9c2ec",
}
_LANES = {"user": ("#c2571a", 2.5), "assistant": ("#2456c8", 1.8)}  # color, height in the row
_LANE, _CELL = 0.5, 1.4  # heights
_LEGENDS = {  # by whether the record is spoken
    True: {"PAD": "PAD", "EPAD": "EPAD: a word follows", "TOKEN": "token of the assistant"},
    False: {"TOKEN": "given", "LEARNED": "learned", "CONTROL": "BOS, EOS"},
}
_INK = "#252b36"


def png(shown: timeline.RecordTimeline) -> bytes:
    """Draws a timeline; its image must decode."""
    from matplotlib import figure as figures

    rows = max(1, min(_MOST_ROWS, math.ceil(len(shown.cells) / _COLUMNS)))
    height = _HEAD + rows * _ROW
    figure = figures.Figure(figsize=(_WIDTH, height), dpi=100)
    _head(figure, shown, height)
    for n in range(rows):
        bottom = (height - _HEAD - (n + 1) * _ROW + 0.35) / height
        axes = figure.add_axes((0.06, bottom, 0.92, (_ROW - 0.4) / height))
        _row(axes, shown, n * _COLUMNS)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _head(figure: Any, shown: timeline.RecordTimeline, height: float) -> None:
    """The image on the left; what the record says on the right; the legend below."""
    record = shown.record
    share = _HEAD / height
    left = 0.02
    if record.image is not None:
        axes = figure.add_axes((0.02, 1 - 0.86 * share, 0.19, 0.82 * share))
        pixels = images.decode(record.image)
        step = max(1, max(pixels.shape[:2]) // 512)  # a large photo takes less memory so
        axes.imshow(pixels[::step, ::step])
        axes.set_axis_off()
        left = 0.24
    title = f"{record.id}   {', '.join(record.kinds)}"
    figure.text(left, 1 - 0.05 * share, title, va="top", fontsize=13, color=_INK, weight="bold")
    turns = [f"{turn.speaker}: {turn.text}" for turn in record.turns]
    lines = [line if len(line) < 140 else line[:137] + "..." for line in turns[:9]]
    if len(turns) > len(lines):
        lines.append(f"... {len(turns) - len(lines)} more turns")
    said = "\n".join(lines).replace("$", r"\$")
    figure.text(left, 1 - 0.17 * share, said, va="top", fontsize=10, color=_INK, linespacing=1.35)
    for n, (kind, name) in enumerate(_LEGENDS[shown.spoken].items()):
        color = _COLORS[getattr(timeline, kind)]
        box = {"facecolor": color, "edgecolor": "#c3cad6", "pad": 3}
        figure.text(0.24 + 0.11 * n, 1 - 0.9 * share, name, fontsize=9, color=_INK, bbox=box)
    most = _COLUMNS * _MOST_ROWS
    if len(shown.cells) > most:
        note = f"the first {most} of {len(shown.cells)}"
        figure.text(0.6, 1 - 0.9 * share, note, fontsize=9, color=_INK)


def _row(axes: Any, shown: timeline.RecordTimeline, first: int) -> None:
    """One line of cells with the lanes of both sides above it."""
    unit = types.FRAME_SECONDS if shown.spoken else 1
    start, end = first * unit, (first + _COLUMNS) * unit
    for n, cell in enumerate(shown.cells[first : first + _COLUMNS], start=first):
        color = _COLORS[cell.kind]
        axes.barh(_CELL / 2, unit, left=n * unit, height=_CELL, color=color, ec="#c3cad6", lw=0.5)
        size = 8 if len(cell.text) <= 6 else 6
        axes.text(
            (n + 0.5) * unit, _CELL / 2, cell.text[:12].replace("$", r"\$"),
            rotation=90, ha="center", va="center", fontsize=size, color=_INK,
        )  # fmt: skip
    for span in shown.spans:
        if span.end < start or span.start > end:
            continue
        color, height = _LANES[span.speaker]
        axes.barh(height, span.end - span.start, left=span.start, height=_LANE, color=color)
    for side, words in (("user", shown.record.user_words), ("assistant", shown.record.words)):
        for word in words or ():
            if shown.spoken and start <= word.start < end:
                axes.text(
                    word.start, _LANES[side][1], word.text.replace("$", r"\$"),
                    va="center", fontsize=7, color="white", clip_on=True,
                )  # fmt: skip
    axes.set(xlim=(start, end), ylim=(0, 2.9 if shown.spoken else _CELL))
    if shown.spoken:
        ticks = {"text": _CELL / 2} | {side: height for side, (_, height) in _LANES.items()}
        axes.set_yticks(list(ticks.values()), list(ticks), fontsize=8)
        axes.set_xticks(np.arange(math.ceil(start), end + 1e-6, 1.0))
    else:
        axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
