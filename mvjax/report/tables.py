"""The tables of a comparison: scores, differences from the baseline, cost, kinds, and what became of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mvjax.report import numbers, page, paper, stats
from mvjax.report import outcomes as outcomes_lib

NONE = "–"
_ERROR_LETTERS = 160  # of an error that are shown
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def scores(
    outcomes: outcomes_lib.Outcomes, found: Sequence[numbers.Score], benchmark: str
) -> page.Table:
    """One row a trial, one column a mode; trials without a result say why."""
    modes, metric = outcomes.modes(benchmark), _metric(outcomes, benchmark)
    by = {(one.trial, one.mode): one for one in found if one.benchmark == benchmark}
    rows = []
    for trial in outcomes.trials:
        own = {mode: by.get((trial.name, mode)) for mode in modes}
        cells = [score_cell(one) for one in own.values()]
        if not any(own.values()):
            cells = [states(outcomes, trial, benchmark)] + [NONE] * (len(modes) - 1)
        counts = {mode: one.mean.n if one else 0 for mode, one in own.items()}
        parameters = count(trial.cost("adapters"))
        rows.append([named(outcomes, trial), *cells, seeds(counts, len(trial.runs)), parameters])
    head = ["trial", *modes, "seeds", "trained parameters"]
    if all(row[-1] == NONE for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return page.Table(
        f"{benchmark}: {metric}; ± is the 95% interval over seeds, in brackets over questions"
        + (", * the baseline" if outcomes.study.baseline else ""),
        head,
        rows,
    )


def differences(
    outcomes: outcomes_lib.Outcomes, found: Sequence[numbers.Score], benchmark: str
) -> page.Table | None:
    """One row a trial and mode; None without a baseline to compare with."""
    rows = []
    for one in found:
        if one.benchmark == benchmark and one.difference is not None:
            d = one.difference
            value = f"{round(100 * d.mean.value, 1) + 0.0:+.1f}"  # not -0.0
            mean = _with_half(value, d.mean)
            asked = f"{d.questions} x {d.asked_seeds}" if d.questions else NONE
            tests = [p_value(d.p_seeds), p_value(d.p_questions), asked]
            rows.append([one.trial, one.mode, mean, str(d.mean.n), *tests])
    if not rows:
        return None
    return page.Table(
        f"{benchmark}: less {outcomes.study.baseline}, in points; p corrected for {len(rows)} comparisons",
        [
            "trial",
            "mode",
            "difference",
            "seeds",
            "p over seeds",
            "p over questions",
            "questions x seeds",
        ],
        rows,
    )


def costs(outcomes: outcomes_lib.Outcomes) -> page.Table | None:
    """One row a trial; None if nothing is known."""
    rows = []
    for trial in outcomes.trials:
        finished = [run.seconds for run in trial.finished() if run.seconds]
        cells = [count(trial.cost(key)) for key in outcomes_lib.COSTS]
        minutes = f"{sum(finished) / len(finished) / 60:.1f}" if finished else NONE
        rows.append([named(outcomes, trial), *cells, minutes])
    if all(cell == NONE for row in rows for cell in row[1:]):
        return None
    head = ["trial", *outcomes_lib.COSTS.values(), "minutes a run"]
    return page.Table(
        "Cost of a trial; a frame is one inference frame that sees an image", head, rows
    )


def kinds(
    outcomes: outcomes_lib.Outcomes, found: Sequence[numbers.Score], benchmark: str, mode: str
) -> page.Table:
    """One row a trial, one column a kind of question."""
    of_mode = [one for one in found if (one.benchmark, one.mode) == (benchmark, mode)]
    names = list(dict.fromkeys(kind for one in of_mode for kind in one.kinds))
    rows = [
        [one.trial, *(f"{100 * one.kinds[k]:.1f}" if k in one.kinds else NONE for k in names)]
        for one in of_mode
    ]
    chances = {
        row["kind"]: row.get("chance") for row in outcomes.result(benchmark).get("table", ())
    }
    known = [chances.get(kind) for kind in names]
    if any(chance is not None for chance in known):
        rows.append(["guessing", *(NONE if c is None else f"{100 * c:.1f}" for c in known)])
    return page.Table(
        f"{benchmark}, {mode}: {_metric(outcomes, benchmark)} by kind, means over seeds",
        ["trial", *names],
        rows,
    )


def directions(outcomes: outcomes_lib.Outcomes, benchmark: str) -> page.Table:
    """Of context switching: one row a trial, means over turns in each direction and mode."""
    rows, head = [], {}
    for trial in outcomes.trials:
        found: dict[str, list[float]] = {}
        for run in trial.finished():
            table = run.results.get(benchmark, {}).get("table", [])[:-1]
            for direction in dict.fromkeys(row["direction"] for row in table if "direction" in row):
                of_it = [row for row in table if row.get("direction") == direction]
                for mode in outcomes.modes(benchmark):
                    scores = [row[mode] for row in of_it if row.get(mode) is not None]
                    if scores:
                        found.setdefault(f"{direction}, {mode}", []).append(
                            sum(scores) / len(scores)
                        )
        head |= dict.fromkeys(found)
        rows.append((trial, {name: stats.mean(values) for name, values in found.items()}))
    cells = [
        [
            named(outcomes, trial),
            *(mean_cell(found[name]) if name in found else NONE for name in head),
        ]
        for trial, found in rows
    ]
    caption = f"{benchmark}: {_metric(outcomes, benchmark)}, means over all turns before"
    return page.Table(caption, ["trial", *head], cells)


def gate_means(
    outcomes: outcomes_lib.Outcomes, traced: Mapping[str, Mapping[str, Sequence[float]]]
) -> page.Table:
    """Means over layers by class of frames, and how many times as open the gates are for the image."""
    classes = list(dict.fromkeys(kind for one in traced.values() for kind in one))
    rows = []
    for name, one in traced.items():
        means = {kind: sum(values) / len(values) for kind, values in one.items()}
        image, other = means.get("image"), means.get("off-topic")
        ratio = f"{image / other:.2f}" if image and other else NONE
        cells = [f"{means[kind]:.4f}" if kind in means else NONE for kind in classes]
        rows.append([name, *cells, ratio])
    head = ["trial", *classes, "image / off-topic"]
    if all(row[-1] == NONE for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return page.Table("Mean gate activation over layers, by class of frames", head, rows)


def unfinished(outcomes: outcomes_lib.Outcomes) -> page.Table | None:
    """Runs that failed, or are not finished, and why; None if there are none."""
    rows = []
    for trial in outcomes.trials:
        for run in trial.runs:
            if run.state != "finished":
                lines = (run.error or "").strip().splitlines()
                error = lines[-1] if lines else NONE
                cut = error if len(error) <= _ERROR_LETTERS else error[:_ERROR_LETTERS] + " ..."
                rows.append([trial.name, str(run.seed), run.state, cut])
    return (
        page.Table("Runs that are not in the tables", ["trial", "seed", "state", "error"], rows)
        if rows
        else None
    )


def left_out(outcomes: outcomes_lib.Outcomes) -> page.Table | None:
    """Files that are not in the numbers, and why; None if there are none."""
    rows = [[one.trial, str(one.seed), one.file, one.why] for one in outcomes.left_out]
    head = ["trial", "seed", "file", "why"]
    return page.Table("Files that are not in the numbers", head, rows) if rows else None


def of_paper(numbers_: paper.PaperNumbers) -> page.Table:
    """The paper's own."""
    return page.Table(f"{numbers_.title} ({numbers_.status})", numbers_.head, numbers_.rows)


def named(outcomes: outcomes_lib.Outcomes, trial: outcomes_lib.Trial) -> str:
    """A trial's name, the baseline's with a star."""
    return f"{trial.name} *" if trial.name == outcomes.study.baseline else trial.name


def states(outcomes: outcomes_lib.Outcomes, trial: outcomes_lib.Trial, benchmark: str) -> str:
    """What became of a trial without a score, such as "failed, not started", "left out", "not evaluated"."""
    out = {(one.trial, one.seed) for one in outcomes.left_out if Path(one.file).stem == benchmark}
    without = ["left out" if (trial.name, r.seed) in out else "not evaluated" for r in trial.runs]
    shown = [
        s if r.state == "finished" else r.state for r, s in zip(trial.runs, without, strict=True)
    ]
    return ", ".join(dict.fromkeys(shown))


def seeds(counts: Mapping[str, int], of: int) -> str:
    """How many seeds {mode: n} are of, such as "3 of 3", or "text 3, audio 1 of 3"."""
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values()))} of {of}"
    return ", ".join(f"{mode} {n}" for mode, n in counts.items()) + f" of {of}"


def score_cell(one: numbers.Score | None) -> str:
    """A mean in percent with its interval."""
    if one is None:
        return NONE
    if one.mean.half is None and one.interval is not None:
        low, high = one.interval
        if low == high:  # drawn anew from answers that are all the same, which tells nothing
            return f"{mean_cell(one.mean)} (answers equal)"
        return f"{mean_cell(one.mean)} [{100 * low:.1f}, {100 * high:.1f}]"
    return mean_cell(one.mean)


def mean_cell(mean: stats.Mean) -> str:
    """A mean in percent with its interval over seeds, if there are several."""
    return _with_half(f"{100 * mean.value:.1f}", mean)


def _with_half(text: str, mean: stats.Mean) -> str:
    if mean.half == 0:
        return f"{text} (seeds equal)"
    return text if mean.half is None else f"{text} ± {100 * mean.half:.1f}"


def _metric(outcomes: outcomes_lib.Outcomes, benchmark: str) -> str:
    return numbers.scaled(outcomes.result(benchmark).get("metric", "accuracy"))


def p_value(p: float | None) -> str:
    """A p value with two digits."""
    return NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def count(value: float | None) -> str:
    """A number with a unit, such as 206.2 M."""
    if value is None:
        return NONE
    for size, unit in _UNITS:
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:g}"
