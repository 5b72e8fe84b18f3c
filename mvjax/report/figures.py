"""The figures of a comparison, made of its scores: rankings, curves, context switches, costs, gates."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from mvjax.report import charts, numbers, page, paper, stats
from mvjax.report import outcomes as outcomes_lib

_RELATIVE = (
    "Relative to plain Moshi, asked the same without the image (image to other), and to the same model"
    " without talk before the question (other to image)."
)
_RINGS = " Rings are single seeds."
_OVER_SEEDS = "Intervals are 95% over seeds, where there are several; what runs off an axis is cut."


def ranking(
    outcomes: outcomes_lib.Outcomes, found: Sequence[numbers.Score], benchmark: str
) -> page.Figure:
    """Every trial's scores in the modes with an image."""
    rows = []
    for trial in outcomes.trials:
        own = [one for one in found if (one.trial, one.benchmark) == (trial.name, benchmark)]
        modes = {one.mode: _percent(one) for one in own if one.mode in outcomes_lib.SEEING}
        if modes:
            group = trial.point.series if trial.point.series != trial.name else ""
            rows.append(charts.Dots(trial.name, modes, group))
    metric = outcomes.result(benchmark).get("metric", "accuracy")
    words = "; ".join(
        f"{row.name}: " + ", ".join(f"{m} {v.value:.1f}" for m, v in row.modes.items())
        for row in rows
    )
    several = any(len(one.seeds) > 1 for row in rows for one in row.modes.values())
    rings = _RINGS if several else ""
    vertical = (
        " The vertical lines are the baseline's (*) means." if outcomes.study.baseline else ""
    )
    return page.Figure(
        f"{benchmark}-scores",
        charts.ranking(
            rows,
            label=f"{benchmark} {numbers.scaled(metric)}",
            baseline=outcomes.study.baseline,
            guessing=_guessing(outcomes, benchmark),
            most=_most(outcomes, benchmark),
        ),
        alt=f"{benchmark}, {numbers.scaled(metric)}: {words}",
        caption=_spread(found, benchmark) + rings + vertical,
    )


def cost(
    outcomes: outcomes_lib.Outcomes, found: Sequence[numbers.Score], benchmark: str, mode: str
) -> page.Figure | None:
    """Scores of one mode against parameters, FLOPs and bytes a frame; None if no cost is known."""
    letters = dict(zip((trial.name for trial in outcomes.trials), _letters(), strict=False))
    scores = [one for one in found if (one.benchmark, one.mode) == (benchmark, mode)]
    trials = {trial.name: trial for trial in outcomes.trials}
    panels: dict[str, list[charts.Spot]] = {}
    for key, label in outcomes_lib.COSTS.items():
        spots = [
            charts.Spot(letters[one.trial], x, _percent(one), one.trial == outcomes.study.baseline)
            for one in scores
            if (x := trials[one.trial].cost(key)) is not None
        ]
        if key != "gate" and len({spot.x for spot in spots}) > 1:
            panels[label] = spots
    if not panels:
        return None
    shown = {letters[one.trial]: one.trial for one in scores}
    metric = numbers.scaled(outcomes.result(benchmark).get("metric", "accuracy"))
    key_text = ", ".join(f"{letter} {name}" for letter, name in shown.items())
    squares = "Squares: the baseline. " if outcomes.study.baseline else ""
    return page.Figure(
        f"{benchmark}-{mode}-cost",
        charts.against(
            panels,
            y_label=f"{benchmark}, {mode}: {metric}",
            most=_most(outcomes, benchmark),
        ),
        alt=f"{benchmark}, {mode}, against {', '.join(panels)}",
        caption=f"{mode.capitalize()} prompts. {_spread(found, benchmark)} {squares}{key_text}.",
    )


def curve(
    outcomes: outcomes_lib.Outcomes, found: Sequence[numbers.Score], benchmark: str
) -> page.Figure:
    """Scores over the study's axis, a line for each series and mode."""
    points = {trial.name: trial.point for trial in outcomes.trials}
    several = len({point.series for point in points.values()}) > 1
    lines: dict[str, dict[str, list[numbers.Score]]] = {}
    for one in found:
        if (
            one.benchmark == benchmark
            and one.mode in outcomes_lib.SEEING
            and points[one.trial].x is not None
        ):
            panel, name = (one.mode, points[one.trial].series) if several else (benchmark, one.mode)
            lines.setdefault(panel, {}).setdefault(name, []).append(one)
    panels = {}
    for panel, of_panel in lines.items():
        panels[panel] = []
        for name, ones in of_panel.items():
            ones = sorted(ones, key=lambda one: points[one.trial].x or 0.0)
            xs = [points[one.trial].x or 0.0 for one in ones]
            panels[panel].append(charts.Series(name, xs, [_percent(one) for one in ones]))
    metric = outcomes.result(benchmark).get("metric", "accuracy")
    return page.Figure(
        f"{benchmark}-curve",
        charts.curves(
            panels,
            x_label=outcomes.study.x_label,
            y_label=numbers.scaled(metric),
            guessing=_guessing(outcomes, benchmark),
            most=_most(outcomes, benchmark),
        ),
        alt=f"{benchmark} over {outcomes.study.x_label}: " + _in_words(panels),
        caption=_spread(found, benchmark) + _rings(panels),
    )


def switches(outcomes: outcomes_lib.Outcomes, benchmark: str, mode: str) -> list[page.Figure]:
    """Scores over the turns before a question, relative as in the paper's figure 5, and as they are."""
    figures = []
    metric = numbers.scaled(outcomes.result(benchmark).get("metric", "accuracy"))
    for relative in (True, False):
        panels = {
            direction: series
            for direction in ("image to other", "other to image")
            if (series := _switch(outcomes, benchmark, mode, direction, relative=relative))
        }
        if panels:
            y_label = "relative score" if relative else f"{mode}: {metric}"
            most = None if relative else _most(outcomes, benchmark)
            label = "exchanges before the question"
            chart = charts.curves(panels, x_label=label, y_label=y_label, most=most)
            name = f"{benchmark}-{mode}-{'relative' if relative else 'absolute'}"
            caption = _RELATIVE if relative else f"The {mode} scores themselves."
            alt = f"{benchmark}, {mode}, {y_label}: {_in_words(panels)}"
            figures.append(
                page.Figure(name, chart, alt, f"{caption} {_OVER_SEEDS}{_rings(panels)}")
            )
    return figures


def gates(traced: Mapping[str, Mapping[str, Sequence[float]]], benchmark: str) -> page.Figure:
    """{trial: {class of frames: activation of each layer}}; of trials with a gate, if any has one."""
    values = {name: [v for line in one.values() for v in line] for name, one in traced.items()}
    ungated = [name for name, own in values.items() if set(own) == {1.0}]
    shown = {name: one for name, one in traced.items() if name not in ungated} or traced
    caption = "Mean over frames and seeds."
    if any(0 in values[name] for name in shown):
        caption += " A layer at 0 has no cross-attention."
    if ungated:
        caption += f" Without a gate, so that all is 1: {', '.join(ungated)}."
    return page.Figure(
        f"{benchmark}-gates",
        charts.layers(shown),
        alt="Mean gate activation of each layer, by class of frames, for " + ", ".join(shown),
        caption=caption,
    )


def of_paper(numbers_: paper.PaperNumbers, name: str) -> page.Figure | None:
    """The paper's curves in the same form; None if it has none."""
    if not numbers_.lines:
        return None
    panels: dict[str, list[charts.Series]] = {}
    for line in numbers_.lines:
        values = [charts.Estimate(y) for y in line.y]
        panels.setdefault(line.panel, []).append(charts.Series(line.series, line.x, values))
    chart = charts.curves(panels, x_label=numbers_.x_label, y_label=numbers_.y_label)
    alt = f"{numbers_.title}: {_in_words(panels)}"
    return page.Figure(
        f"paper-{name.replace('_', '-')}", chart, alt, f"{numbers_.title}, {numbers_.status}."
    )


def _switch(
    outcomes: outcomes_lib.Outcomes, benchmark: str, mode: str, direction: str, *, relative: bool
) -> list[charts.Series]:
    series = []
    for trial in outcomes.trials:
        of_turns: dict[int, list[float]] = {}
        for run in trial.finished():
            table = run.results.get(benchmark, {}).get("table", [])[:-1]
            rows = {row["turns"]: row for row in table if row.get("direction") == direction}
            for turns, score in _relative(rows, mode, direction, relative=relative).items():
                of_turns.setdefault(turns, []).append(score)
        if of_turns:
            turns = sorted(of_turns)
            means = [stats.mean(of_turns[x]) for x in turns]
            values = [
                charts.Estimate(mean.value, mean.ends(), of_turns[x])
                for x, mean in zip(turns, means, strict=True)
            ]
            series.append(charts.Series(trial.point.series, [float(x) for x in turns], values))
    return series


def _relative(
    rows: Mapping[int, Mapping[str, Any]], mode: str, direction: str, *, relative: bool
) -> dict[int, float]:
    """{turns: score}; what it is relative to must be known, and not 0."""
    scores = {turns: row[mode] for turns, row in rows.items() if row.get(mode) is not None}
    if not relative:
        return {turns: 100 * score for turns, score in scores.items()}
    if direction == "image to other":
        bases = {turns: rows[turns].get("blind") for turns in scores}
    else:
        bases = dict.fromkeys(scores, scores[min(scores)] if scores else None)
    return {turns: score / base for turns, score in scores.items() if (base := bases[turns])}


def _most(outcomes: outcomes_lib.Outcomes, benchmark: str) -> float | None:
    """The largest possible score in percent; None if it is not 100."""
    metric = outcomes.result(benchmark).get("metric", "accuracy")
    return 100.0 if metric.endswith("accuracy") else None


def _guessing(outcomes: outcomes_lib.Outcomes, benchmark: str) -> float | None:
    """The best score to expect without the image, in percent, if it is known."""
    chance = outcomes.result(benchmark)["table"][-1].get("chance")
    return None if chance is None else 100 * chance


def _percent(one: numbers.Score) -> charts.Estimate:
    ends = one.ends()
    return charts.Estimate(
        100 * one.mean.value,
        None if ends is None else (100 * ends[0], 100 * ends[1]),
        [100 * score for score in one.seeds.values()],
    )


def _rings(panels: Mapping[str, Sequence[charts.Series]]) -> str:
    """What rings are, if there are any: `charts.curves`."""
    several = any(len(y.seeds) > 1 for series in panels.values() for one in series for y in one.y)
    crowded = any(len(series) > charts.CROWD for series in panels.values())
    return _RINGS if several and not crowded else ""


def _spread(found: Sequence[numbers.Score], benchmark: str) -> str:
    """What the intervals of a benchmark's scores are over."""
    of_one = [one for one in found if one.benchmark == benchmark]
    seeds = any(one.mean.n > 1 for one in of_one)
    questions = any(one.interval is not None for one in of_one)
    over = "over seeds" if seeds else "over questions" if questions else ""
    over += ", of a single one over questions" if seeds and questions else ""
    return f"Intervals are 95% {over}; what runs off an axis is cut." if over else "No intervals."


def _letters() -> list[str]:
    single = string.ascii_uppercase
    return [*single, *(a + b for a in single for b in single)]


def _in_words(panels: Mapping[str, Sequence[charts.Series]]) -> str:
    """The means, for those who do not see the chart."""
    texts = []
    for panel, series in panels.items():
        for one in series:
            pairs = zip(one.x, one.y, strict=True)
            values = ", ".join(f"{y.value:.3g} at {x:g}" for x, y in pairs)
            texts.append(f"{panel}, {one.name}: {values}")
    return "; ".join(texts)
