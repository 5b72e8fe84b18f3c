"""The charts of a comparison: scores with seeds, against cost, over an axis; gate activation over layers.

Each is told apart by markers and line styles as well as by color, on paper too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mvjax.report import plots

_MARKERS, _LINES = "osD^vP", ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
CROWD = 2  # series in a panel; more have bars, a little aside of each other
_NARROW_WIDTH = 5.0  # inches: below it panels stand below each other


class Chart(NamedTuple):
    """A plot for a page, and the same as a PNG file."""

    plot: plots.Plot
    png: bytes


class Estimate(NamedTuple):
    """A mean, the ends of its interval, if it has one, and what single seeds had."""

    value: float
    ends: tuple[float, float] | None = None
    seeds: Sequence[float] = ()

    def bar(self) -> list[list[float]] | None:
        """As matplotlib's errorbar takes it; an interval holds its mean."""
        if self.ends is None:
            return None
        return [[max(0.0, self.value - self.ends[0])], [max(0.0, self.ends[1] - self.value)]]


class Series(NamedTuple):
    """Estimates at x."""

    name: str
    x: Sequence[float]
    y: Sequence[Estimate]


class Dots(NamedTuple):
    """One row of `ranking`."""

    name: str
    modes: Mapping[str, Estimate]
    group: str = ""  # rows of one group follow each other, under its name


class Spot(NamedTuple):
    """One point of `against`."""

    letter: str
    x: float
    y: Estimate
    baseline: bool = False


def ranking(
    rows: Sequence[Dots],
    *,
    label: str,
    baseline: str | None,
    guessing: float | None = None,
    most: float | None = None,
) -> Chart:
    """One row a trial: each mode's mean with its interval, and every seed as a small ring.

    `most` is the largest possible score, where the axis ends, as it does at 0.
    """
    modes = list(dict.fromkeys(mode for row in rows for mode in row.modes))

    def draw(figure: Any, width: float) -> None:
        axes = plots.styled(figure.add_subplot())
        axes.grid(axis="x", color=plots.LINE, linewidth=0.8)
        axes.grid(visible=False, axis="y")
        if guessing is not None:
            axes.axvline(guessing, color=plots.SOFT, linewidth=0.9, linestyle=":", label="guessing")
        for k, mode in enumerate(modes):
            shift = (k - (len(modes) - 1) / 2) * 0.24
            color, marker = plots.CURVES[k], _MARKERS[k]
            for i, row in enumerate(rows):
                if mode not in row.modes:
                    continue
                one, at = row.modes[mode], len(rows) - 1 - i - shift
                axes.plot(
                    one.seeds, [at] * len(one.seeds), "o", mfc="none", mec=color, ms=3.4, mew=0.7
                )
                axes.errorbar(
                    one.value, at, xerr=one.bar(), color=color, marker=marker, ms=5.5, capsize=2.5,
                    linewidth=1.2, label=None if mode in _labels(figure) else mode,
                )  # fmt: skip
                if row.name == baseline:
                    axes.axvline(one.value, color=color, linewidth=0.9, linestyle=_LINES[k + 1])
        for i, row in enumerate(rows):
            if row.group and (i == 0 or row.group != rows[i - 1].group):
                at = len(rows) - 0.5 - i
                axes.axhline(at, color=plots.LINE, linewidth=0.8)
                place = {"transform": axes.get_yaxis_transform(), "ha": "left", "va": "top"}
                axes.text(0.006, at, row.group, fontsize=7, color=plots.SOFT, **place)
        names = [row.name if row.name != baseline else f"{row.name} *" for row in rows]
        size = 9 if width == plots.WIDE else 6.5
        axes.set_yticks(range(len(rows))[::-1], names, fontsize=size)
        every = [one for row in rows for one in row.modes.values()]
        ends = _within(axes.get_xlim(), every, most)
        if len(rows) == 1 and most is not None:  # nothing to compare with but the whole scale
            ends = (-0.02 * most, 1.02 * most)
        axes.set(xlabel=label, ylim=(-0.6, len(rows) - 0.4), xlim=ends)
        figure.legend(frameon=False, ncols=4, loc="outside upper left")

    height = 1.1 + 0.36 * len(rows)
    return _chart(draw, wide=height, narrow=height + 0.2)


def against(
    panels: Mapping[str, Sequence[Spot]], *, y_label: str, most: float | None = None
) -> Chart:
    """Scores against costs, a panel for each; `most` as in `ranking`."""

    def draw(figure: Any, width: float) -> None:
        for i, (axes, (label, spots)) in enumerate(_panels(figure, width, panels)):
            for spot in spots:
                color = plots.CURVES[1] if spot.baseline else plots.CURVES[0]
                axes.errorbar(
                    spot.x, spot.y.value, yerr=spot.y.bar(), color=color, capsize=2, linewidth=0.9,
                    marker="s" if spot.baseline else "o", ms=4,
                )  # fmt: skip
            _cost_scale(axes, [spot.x for spot in spots])
            axes.set_ylim(_within(axes.get_ylim(), [spot.y for spot in spots], most))
            _letter(axes, spots)
            axes.set(xlabel=label, ylabel=y_label if i == 0 or width < _NARROW_WIDTH else "")

    return _chart(draw, wide=3.6, narrow=2.6 * len(panels))


def curves(
    panels: Mapping[str, Sequence[Series]],
    *,
    x_label: str,
    y_label: str,
    guessing: float | None = None,
    most: float | None = None,
) -> Chart:
    """Lines with their intervals, one panel each; single seeds as small rings; `most` as in `ranking`."""
    names = list(dict.fromkeys(one.name for series in panels.values() for one in series))
    every = [one for series in panels.values() for one in series]
    xs = sorted({x for one in every for x in one.x})

    def draw(figure: Any, width: float) -> None:
        for i, (axes, (title, series)) in enumerate(_panels(figure, width, panels)):
            if guessing is not None:
                label = None if i else "guessing"
                axes.axhline(guessing, color=plots.SOFT, linewidth=0.9, linestyle=":", label=label)
            for k, one in ((names.index(one.name), one) for one in series):
                shown = None if one.name in _labels(figure) else one.name
                aside = (k - (len(names) - 1) / 2) * 0.008 * (xs[-1] - xs[0])
                _draw_line(axes, one, k, label=shown, aside=aside if len(series) > CROWD else 0.0)
            _scale(axes, xs)
            shown = [y for one in series for y in one.y]
            if len(series) > CROWD:  # which has no rings
                shown = [Estimate(y.value) for y in shown]
            axes.set_ylim(_within(axes.get_ylim(), shown, most))
            axes.set_title(title, fontsize=9, color=plots.INK)
            first = i == 0 or width < _NARROW_WIDTH
            axes.set(xlabel=x_label, ylabel=y_label if first else "")
        columns = 3 if width == plots.WIDE else 2 if max(map(len, names)) < 16 else 1
        figure.legend(frameon=False, ncols=columns, loc="outside upper left", fontsize=8)

    across = min(len(panels), 3)
    rows = math.ceil(len(panels) / across)
    legend = 0.2 * math.ceil(len(names) / 3)
    return _chart(draw, wide=3.0 * rows + legend, narrow=2.5 * len(panels) + 2 * legend)


def _draw_line(axes: Any, one: Series, k: int, *, label: str | None, aside: float) -> None:
    """A line with its band and rings; `aside` of others, in a crowd, with bars in their place."""
    color, xs = plots.CURVES[k % len(plots.CURVES)], [x + aside for x in one.x]
    values, ends = [y.value for y in one.y], [y.ends or (y.value, y.value) for y in one.y]
    marker, style = _MARKERS[k % len(_MARKERS)], _LINES[k % len(_LINES)]
    axes.plot(xs, values, marker=marker, ms=5, color=color, linestyle=style, label=label)
    if aside:
        bars = {"ecolor": color, "elinewidth": 0.8, "capsize": 2, "alpha": 0.4}
        for x, y in zip(xs, one.y, strict=True):
            if y.ends is not None:
                axes.errorbar(x, y.value, y.bar(), fmt="none", **bars)
        return
    if any(y.ends for y in one.y):
        axes.fill_between(xs, *zip(*ends, strict=True), color=color, alpha=0.13, linewidth=0)
    for x, y in zip(xs, one.y, strict=True):
        axes.plot([x] * len(y.seeds), y.seeds, "o", mfc="none", mec=color, ms=3, mew=0.6)


def layers(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> Chart:
    """Mean gate activation of each layer, a line for each class of frames, a panel for each trial."""
    classes = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    across = {True: 4, False: 2}

    def rows(wide: bool) -> int:
        return math.ceil(len(panels) / across[wide])

    def draw(figure: Any, width: float) -> None:
        wide = width == plots.WIDE
        grid = figure.subplots(rows(wide), across[wide], sharey=True, squeeze=False)
        flat = [axes for line in grid for axes in line]
        for axes in flat[len(panels) :]:
            axes.set_axis_off()
        for i, (axes, (name, lines)) in enumerate(zip(flat, panels.items(), strict=False)):
            plots.styled(axes)
            for k, kind in enumerate(classes):
                if kind in lines:
                    shown = None if kind in _labels(figure) else kind
                    axes.plot(
                        range(1, 1 + len(lines[kind])), lines[kind], _MARKERS[k % len(_MARKERS)],
                        ms=4, color=plots.CURVES[k % len(plots.CURVES)],
                        linestyle=_LINES[k % len(_LINES)], label=shown,
                    )  # fmt: skip
            axes.set_title(name, fontsize=8 if wide else 6.5, color=plots.INK)
            axes.set_xticks(_ticks(max(map(len, lines.values()))))
            axes.set_xlabel("layer" if i >= len(panels) - across[wide] else "")
        if all(value >= 0 for one in panels.values() for line in one.values() for value in line):
            flat[0].set_ylim(bottom=0)
        figure.supylabel("gate activation", fontsize=9, color=plots.SOFT)
        figure.legend(frameon=False, ncols=3, loc="outside upper left")

    return _chart(draw, wide=0.6 + 1.8 * rows(True), narrow=0.6 + 1.6 * rows(False))


def _chart(draw: Callable[[Any, float], None], *, wide: float, narrow: float) -> Chart:
    return Chart(plots.drawn(draw, wide=wide, narrow=narrow), plots.png(draw, height=wide))


def _panels(
    figure: Any, width: float, panels: Mapping[str, Any]
) -> list[tuple[Any, tuple[str, Any]]]:
    """Axes for each panel: three beside each other, or on a phone all below each other."""
    across = 1 if width < _NARROW_WIDTH else min(len(panels), 3)
    rows = math.ceil(len(panels) / across)
    grid = figure.subplots(rows, across, squeeze=False)
    flat = [axes for line in grid for axes in line]
    for axes in flat[len(panels) :]:
        axes.set_axis_off()
    return [(plots.styled(a), item) for a, item in zip(flat, panels.items(), strict=False)]


def _labels(figure: Any) -> set[str]:
    return {text for axes in figure.axes for text in axes.get_legend_handles_labels()[1]}


def _within(
    ends: tuple[float, float], shown: Sequence[Estimate], most: float | None
) -> tuple[float, float]:
    """An axis no longer than scores are possible, with room for markers.

    Without a largest score, it holds every mean and seed, and intervals over questions; those over seeds that
    are far wider, as of two that lie apart, run off it.
    """
    room = 0.02 * (most or max((one.value for one in shown), default=0.0) or 1.0)
    low, high = max(ends[0], -room), ends[1] if most is None else min(ends[1], most + room)
    held = [x for one in shown for x in (one.value, *one.seeds)]
    held += [x for one in shown if one.ends and len(one.seeds) < 2 for x in one.ends]
    if most is None and held:
        beyond = max((max(held) - min(held)) / 2, 10 * room)
        low, high = max(low, min(held) - beyond), min(high, max(held) + beyond)
    return low, high


def _scale(axes: Any, xs: Sequence[float]) -> None:
    """Ticks where the points are; values that crowd near 0 are drawn apart, by their roots."""
    positive = [x for x in xs if x > 0]
    if len(xs) > 4 and positive and min(xs) >= 0 and max(xs) > 12 * min(positive):
        axes.set_xscale("function", functions=(_root, lambda x: x * np.abs(x)))
    if len(xs) <= 12:
        axes.set_xticks(xs, [f"{x:g}" for x in xs], fontsize=7.5)


def _root(x: Any) -> Any:
    return np.sign(x) * np.abs(x) ** 0.5


def _cost_scale(axes: Any, xs: Sequence[float]) -> None:
    """Numbers such as 20 M; logarithmic if they lie far apart."""
    from matplotlib import ticker

    if min(xs) > 0 and max(xs) > 8 * min(xs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    else:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.xaxis.set_major_formatter(ticker.EngFormatter())
    axes.tick_params(axis="x", labelsize=7.5)


def _ticks(layers_: int) -> list[int]:
    step = max(1, math.ceil(layers_ / 6))
    return list(range(1, layers_ + 1, step))


def _letter(axes: Any, spots: Sequence[Spot]) -> None:
    """Letters beside the points; one label for those that would lie on each other."""
    left = list(spots)
    while left:
        x, y = axes.transData.transform((left[0].x, left[0].y.value))
        places = [axes.transData.transform((spot.x, spot.y.value)) for spot in left]
        near = [abs(px - x) < 12 and abs(py - y) < 12 for px, py in places]  # pixels
        text = " ".join(spot.letter for spot, is_near in zip(left, near, strict=True) if is_near)
        aside = {"xytext": (4, 3), "ha": "left"}
        if x > axes.bbox.x0 + 0.85 * axes.bbox.width:  # inside of the chart
            aside = {"xytext": (-4, 3), "ha": "right"}
        place = (left[0].x, left[0].y.value)
        axes.annotate(text, place, textcoords="offset points", fontsize=8, **aside)
        left = [spot for spot, is_near in zip(left, near, strict=True) if not is_near]
