"""Plots as SVG, each wide and narrow: loss curves, and gate activation over a conversation.

Colors are CSS variables, each with a value for light and one for dark pages; letters are outlines.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mvjax import types

_COLORS = {  # {role: on a light page, on a dark one}; matplotlib draws the first, each is another one
    "ink": ("#1b2330", "#e8ecf3"),
    "soft": ("#566072", "#a3adbe"),
    "line": ("#dde2ea", "#313a49"),
    "layer": ("#8f9db3", "#6d7a90"),
    "looks": ("#dbe7ff", "#22345c"),  # behind talk about the image
    "talks": ("#fdeedd", "#46331f"),  # behind small talk
    "first": ("#2456c8", "#8db1ff"),
    "second": ("#c2571a", "#ffab73"),
    "third": ("#17805a", "#6fd6ab"),
    "fourth": ("#8a3fb0", "#d29cf0"),
    "fifth": ("#8a6500", "#e8c558"),
    "sixth": ("#0f7e9b", "#6fd3ee"),
}
INK, SOFT, LINE, _LAYER, _LOOKS, _TALKS, *CURVES = (light for light, _ in _COLORS.values())
WIDE, _NARROW = 9.6, 3.6  # inches, at 96 pixels each
_SMOOTHED = 1 / 8  # of a curve, that each point of its running mean takes in


class Plot(NamedTuple):
    """One plot, drawn for two widths of the page; each a whole SVG file."""

    wide: str
    narrow: str


class PlottedExchange(NamedTuple):
    """A question and its answer; frames are (first, last + 1), `answered` None if there was no answer."""

    about_image: bool
    frames: tuple[int, int]  # of both, with the silence after them
    question: str
    asked: tuple[int, int]
    answer: str
    answered: tuple[int, int] | None


def losses(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> Plot:
    """One thick line for each {name: (steps, values)}, a running mean; the values behind it, thin."""

    def draw(figure: Any, width: float) -> None:
        axes = styled(figure.add_subplot())
        for color, (name, (steps, values)) in zip(CURVES, curves.items(), strict=False):
            axes.plot(steps, values, color=color, alpha=0.35, linewidth=0.8)
            axes.plot(steps, _running_mean(values), color=color, linewidth=2, label=name)
        axes.set(xlabel="step", ylabel="loss (nats)", ylim=(0, None))
        figure.legend(frameon=False, ncols=4 if width == WIDE else 2, loc="outside upper left")

    return drawn(draw, wide=3.8, narrow=3.4)


def gates(activation: np.ndarray, exchanges: Sequence[PlottedExchange]) -> Plot:
    """Gate activation (float [L, T]) over a conversation, under what was asked and answered when."""
    end = activation.shape[1] * types.FRAME_SECONDS

    def draw(figure: Any, width: float) -> None:
        talk, axes = figure.subplots(2, sharex=True, height_ratios=(1, 1.5))
        _draw_talk(talk, exchanges, letters=(width - 0.8) * 13 / end)
        styled(axes)
        seconds = np.arange(activation.shape[1]) * types.FRAME_SECONDS
        for i, layer in enumerate(activation):
            axes.plot(seconds, layer, color=_LAYER, linewidth=0.8, label=None if i else "one layer")
        axes.plot(seconds, activation.mean(axis=0), color=CURVES[0], linewidth=2.4, label="mean")
        axes.set(xlabel="seconds", ylabel="gate activation", xlim=(0, end), ylim=(0, None))
        labels = {True: "about the image", False: "small talk"}
        for exchange in exchanges:
            span, color = _seconds(exchange.frames), _LOOKS if exchange.about_image else _TALKS
            axes.axvspan(*span, color=color, zorder=0, label=labels.pop(exchange.about_image, None))
            talk.axvspan(*span, color=color, zorder=0)
            for lane, line in ((exchange.asked, SOFT), (exchange.answered, CURVES[0])):
                if lane is not None:
                    axes.axvline(_seconds(lane)[0], color=line, linewidth=1, linestyle=":")
        figure.legend(frameon=False, ncols=4 if width == WIDE else 2, loc="outside lower center")

    return drawn(draw, wide=4.8, narrow=5.2)


def _draw_talk(axes: Any, exchanges: Sequence[PlottedExchange], *, letters: float) -> None:
    """Two lanes: when the user asks and the model answers, and what; `letters` fit into a second."""
    axes.set(ylim=(0, 2), yticks=(1.84, 0.84), yticklabels=("user", "model"))
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[:].set_visible(False)
    for exchange in exchanges:
        first, last = _seconds(exchange.frames)
        question, answer = f"“{exchange.question}?”", f"“{exchange.answer}”"
        for top, span, text, color in (
            (1.9, exchange.asked, question, SOFT),
            (0.9, exchange.answered, answer, CURVES[0]),
        ):
            if span is None:
                axes.text(first, top, " (silence)", color=SOFT, va="top")
                continue
            begin, end = _seconds(span)
            axes.barh(top, end - begin, 0.12, begin, color=color)
            text = textwrap.fill(text, max(8, int(letters * (last - begin))))
            axes.text(begin, top - 0.12, text, color=INK, va="top", linespacing=1.15)


def _seconds(frames: tuple[int, int]) -> tuple[float, float]:
    return frames[0] * types.FRAME_SECONDS, frames[1] * types.FRAME_SECONDS


def drawn(draw: Callable[[Any, float], None], *, wide: float, narrow: float) -> Plot:
    """Draws a plot in both widths with these heights (inches); `draw` takes a figure and its width."""
    svg = {"format": "svg", "transparent": True, "metadata": {"Date": None}}
    sizes = ((WIDE, wide), (_NARROW, narrow))
    return Plot(*(_with_variables(_saved(draw, size, svg).decode()) for size in sizes))


def png(draw: Callable[[Any, float], None], *, height: float) -> bytes:
    """Draws the wide one as a PNG file on white, for Markdown and for print."""
    software = {"metadata": {"Software": None}}
    return _saved(draw, (WIDE, height), {"format": "png", "dpi": 110, **software})


def _saved(
    draw: Callable[[Any, float], None], size: tuple[float, float], form: Mapping[str, Any]
) -> bytes:
    """Returns the file, drawn without pyplot: no global state, no display."""
    import matplotlib
    from matplotlib import figure as figures

    style: Any = {
        "svg.hashsalt": "mvjax",
        "font.size": 9,
        "text.color": INK,
        "axes.edgecolor": SOFT,
    }
    style |= {"axes.labelcolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT}
    with matplotlib.rc_context(style):
        figure = figures.Figure(figsize=size, layout="constrained")
        draw(figure, size[0])
        buffer = io.BytesIO()
        figure.savefig(buffer, **form)
    return buffer.getvalue()


def _with_variables(svg: str) -> str:
    """Replaces colors by CSS variables that follow the page's color scheme."""
    for role, (light, _) in _COLORS.items():
        svg = svg.replace(light, f"var(--{role})")
    light, dark = (
        "".join(f"--{role}: {pair[i]};" for role, pair in _COLORS.items()) for i in (0, 1)
    )
    style = f"svg {{{light}}} @media (prefers-color-scheme: dark) {{svg {{{dark}}}}}"
    return svg.replace("<defs>", f"<style>{style}</style><defs>", 1)


def styled(axes: Any) -> Any:
    """Returns axes with the look of all plots."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _running_mean(values: Sequence[float]) -> np.ndarray:
    """Means over `_SMOOTHED` of the curve around each point; towards the ends over what there is."""
    kernel = np.ones(2 * round(len(values) * _SMOOTHED / 2) + 1)
    sums = np.convolve(np.pad(np.asarray(values, float), len(kernel) // 2), kernel, mode="valid")
    return sums / np.convolve(np.pad(np.ones(len(values)), len(kernel) // 2), kernel, mode="valid")
