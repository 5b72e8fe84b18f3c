"""The report's plots, as PNG bytes: loss curves and gate activation."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvjax import types

_COLORS = ("#2456c8", "#c2571a", "#17805a", "#8a3fb0", "#5b6472", "#b3261e")
_LOOKS, _TALKS = "#dbe7ff", "#fdeedd"  # shades behind talk about the image, and behind small talk


def losses(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> bytes:
    """One line for each {name: (steps, values)}, logarithmic, with a running mean over noisy ones."""
    figure, axes = _canvas(9.6, 3.8)
    for color, (name, (steps, values)) in zip(_COLORS, curves.items(), strict=False):
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
        axes.plot(*_running_mean(steps, values), color=color, linewidth=2, label=name)
    axes.set(xlabel="step", ylabel="loss (nats)", yscale="log")
    axes.legend(frameon=False, ncols=min(4, max(1, len(curves))))
    return _png(figure)


def gates(
    activation: np.ndarray,
    *,
    looks: Sequence[tuple[int, int]],
    talks: Sequence[tuple[int, int]],
    words: Sequence[tuple[str, int]],
    asked: Sequence[tuple[str, int]],
) -> bytes:
    """Gate activation (float [L, T]) over a conversation.

    Behind it stand the frame ranges of talk about the image (`looks`) and of small talk (`talks`), above it
    the model's `words` and the questions `asked`, each with its frame.
    """
    figure, axes = _canvas(9.6, 4.4)
    seconds = np.arange(activation.shape[1]) * types.FRAME_SECONDS
    for spans, color, label in ((looks, _LOOKS, "about the image"), (talks, _TALKS, "small talk")):
        for i, (first, last) in enumerate(spans):
            edges = (first * types.FRAME_SECONDS, last * types.FRAME_SECONDS)
            axes.axvspan(*edges, color=color, zorder=0, label=None if i else label)
    for i, layer in enumerate(activation):
        axes.plot(seconds, layer, color="#7f8ea6", linewidth=0.8, label=None if i else "one layer")
    axes.plot(seconds, activation.mean(axis=0), color=_COLORS[0], linewidth=2.4, label="mean")
    top = max(float(activation.max()), 1e-3)
    axes.set(xlabel="seconds", ylabel="gate activation", ylim=(0, 1.55 * top))
    axes.set_xlim(0, activation.shape[1] * types.FRAME_SECONDS)
    for question, frame in asked:
        _note(axes, frame, 1.5 * top, f"“{question}?”", color="#414c5e", style="italic")
    for row, (word, frame) in enumerate(words):
        _note(axes, frame, (1.36 - 0.075 * (row % 3)) * top, word, color=_COLORS[0])
    axes.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return _png(figure)


def _canvas(width: float, height: float) -> tuple[Any, Any]:
    """A figure without pyplot: no global state, no display."""
    from matplotlib import figure as figures
    from matplotlib.backends import backend_agg

    figure = figures.Figure(figsize=(width, height), dpi=150, layout="constrained")
    backend_agg.FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e3e7ee", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _note(axes: Any, frame: int, y: float, text: str, *, color: str, style: str = "normal") -> None:
    x = frame * types.FRAME_SECONDS
    axes.text(x, y, text, fontsize=8, color=color, style=style, va="top")


def _running_mean(steps: Sequence[int], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Means over a twenty-fifth of the curve, each at the middle of its window."""
    width = max(1, len(values) // 25)
    kernel = np.full(width, 1 / width)
    means = np.convolve(np.asarray(values, float), kernel, mode="valid")
    return np.asarray(steps, float)[width // 2 :][: len(means)], means


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
