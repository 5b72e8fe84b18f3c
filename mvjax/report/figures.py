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
_SPREAD = "Intervals are 95% over seeds; rings, where there are any, are single seeds."


def ranking(
    outcomes: outcomes_lib.Outcomes, found: Sequence[numbers.Score], benchmark: str
) -> page.Figure:
    """Every trial's scores in the modes with an image."""
    rows = []
    for trial in outcomes.trials:
        own = [one for one in found if (one.trial, one.benchmark) == (trial.name, benchmark)]
        modes = {
            one.mode: (_percent(one.mean), [100 * score for score in one.seeds.values()])
            for one in own
            if one.mode in outcomes_lib.SEEING
        }
        if modes:
            group = trial.point.series if trial.point.series != trial.name else ""
            rows.append(charts.Dots(trial.name, modes, group))
    metric = outcomes.result(benchmark).get("metric", "accuracy")
    words = "; ".join(
        f"{row.name}: " + ", ".join(f"{m} {v.value:.1f}" for m, (v, _) in row.modes.items())
        for row in rows
    )
    vertical = (
        " The vertical lines are the baseline's (*) means." if outcomes.study.baseline else ""
    )
    return page.Figure(
        f"{benchmark}-scores",
        charts.ranking(
            rows,
            label=f"{benchmark} {metric}, %",
            baseline=outcomes.study.baseline,
            guessing=_guessing(outcomes, benchmark),
            most=_most(outcomes, benchmark),
        ),
        alt=f"{benchmark}, percent: {words}",
        caption=_SPREAD + vertical,
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
            charts.Spot(
                letters[one.trial], x, _percent(one.mean), one.trial == outcomes.study.baseline
            )
            for one in scores
            if (x := trials[one.trial].cost(key)) is not None
        ]
        if key != "gate" and len({spot.x for spot in spots}) > 1:
            panels[label] = spots
    if not panels:
        return None
    shown = {letters[one.trial]: one.trial for one in scores}
    key_text = ", ".join(f"{letter} {name}" for letter, name in shown.items())
    return page.Figure(
        f"{benchmark}-{mode}-cost",
        charts.against(panels, y_label=f"{benchmark}, {mode}, %", names=shown),
        alt=f"{benchmark}, {mode}, against {', '.join(panels)}",
        caption=f"{mode.capitalize()} prompts. Squares: the baseline. {key_text}.",
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
            seeds = [[100 * score for score in one.seeds.values()] for one in ones]
            panels[panel].append(
                charts.Series(name, xs, [_percent(one.mean) for one in ones], seeds)
            )
    metric = outcomes.result(benchmark).get("metric", "accuracy")
    return page.Figure(
        f"{benchmark}-curve",
        charts.curves(
            panels,
            x_label=outcomes.study.x_label,
            y_label=f"{metric}, %",
            guessing=_guessing(outcomes, benchmark),
            most=_most(outcomes, benchmark),
        ),
        alt=f"{benchmark} over {outcomes.study.x_label}: " + _in_words(panels),
        caption=_SPREAD,
    )


def switches(outcomes: outcomes_lib.Outcomes, benchmark: str, mode: str) -> list[page.Figure]:
    """Scores over the turns before a question, relative as in the paper's figure 5, and as they are."""
    figures = []
    for relative in (True, False):
        panels = {
            direction: series
            for direction in ("image to other", "other to image")
            if (series := _switch(outcomes, benchmark, mode, direction, relative=relative))
        }
        if panels:
            y_label = "relative score" if relative else f"{mode} score, %"
            most = None if relative else _most(outcomes, benchmark)
            label = "exchanges before the question"
            chart = charts.curves(panels, x_label=label, y_label=y_label, most=most)
            name = f"{benchmark}-{mode}-{'relative' if relative else 'absolute'}"
            caption = _RELATIVE if relative else f"The {mode} scores themselves."
            alt = f"{benchmark}, {mode}, {y_label}: {_in_words(panels)}"
            figures.append(page.Figure(name, chart, alt, f"{caption} {_SPREAD}"))
    return figures


def gates(traced: Mapping[str, Mapping[str, Sequence[float]]], benchmark: str) -> page.Figure:
    """{trial: {class of frames: activation of each layer}}."""
    return page.Figure(
        f"{benchmark}-gates",
        charts.layers(traced),
        alt="Mean gate activation of each layer, by class of frames, for " + ", ".join(traced),
        caption="Mean over frames and seeds, of every layer with cross-attention or without (0).",
    )


def of_paper(numbers_: paper.PaperNumbers, name: str) -> page.Figure | None:
    """The paper's curves in the same form; None if it has none."""
    if not numbers_.lines:
        return None
    panels: dict[str, list[charts.Series]] = {}
    for line in numbers_.lines:
        means = [stats.Mean(y, None, 1) for y in line.y]
        panels.setdefault(line.panel, []).append(charts.Series(line.series, line.x, means))
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
            means, xs = [stats.mean(of_turns[x]) for x in turns], [float(x) for x in turns]
            series.append(
                charts.Series(trial.point.series, xs, means, [of_turns[x] for x in turns])
            )
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


def _percent(mean: stats.Mean) -> stats.Mean:
    half = None if mean.half is None else 100 * mean.half
    return stats.Mean(100 * mean.value, half, mean.n)


def _letters() -> list[str]:
    single = string.ascii_uppercase
    return [*single, *(a + b for a in single for b in single)]


def _in_words(panels: Mapping[str, Sequence[charts.Series]]) -> str:
    """The means, for those who do not see the chart."""
    texts = []
    for panel, series in panels.items():
        for one in series:
            pairs = zip(one.x, one.means, strict=True)
            values = ", ".join(f"{mean.value:.3g} at {x:g}" for x, mean in pairs)
            texts.append(f"{panel}, {one.name}: {values}")
    return "; ".join(texts)
