"""Composes the page of a comparison from what was read: what is asked, found, and how sure it is."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import mvjax
from mvjax import messages
from mvjax.report import comparable, figures, numbers, page, paper, tables
from mvjax.report import outcomes as outcomes_lib

_LEVEL = 0.05  # of p values
_MOST_KINDS = 10  # that a table by kind has


def compose(outcomes: outcomes_lib.Outcomes, found: Sequence[numbers.Score]) -> page.Page:
    """Returns the page.

    Raises:
      ValueError: if the study names numbers of the paper that are not known.
    """
    study = outcomes.study
    runs = [run for trial in outcomes.trials for run in trial.runs]
    done = sum(run.state == "finished" for run in runs)
    sections = [page.Section("Question", _question(outcomes, found, done, len(runs)))]
    for benchmark in outcomes.benchmarks():
        sections += _benchmark(outcomes, found, benchmark)
    sections += _cost(outcomes, found)
    if study.paper is not None:
        sections.append(_paper(outcomes, study.paper))
    if out := tables.left_out(outcomes):
        sections.append(page.Section("Left out", [out]))
    if missing := tables.unfinished(outcomes):
        sections.append(page.Section("Failed and unfinished runs", [missing]))
    sections.append(page.Section("Method", _method(outcomes)))
    counts = {"trial": len(outcomes.trials), "seed": len(outcomes.seeds)}
    sizes = ", ".join(messages.counted(number, one) for one, number in counts.items())
    subtitle = f"{sizes}, {done} of {messages.counted(len(runs), 'run')} finished"
    return page.Page(study.title, subtitle, sections, f"mvjax {mvjax.__version__}: mvjax report")


def _question(
    outcomes: outcomes_lib.Outcomes, found: Sequence[numbers.Score], done: int, runs: int
) -> list[str | page.Table | page.Figure]:
    study = outcomes.study
    blocks: list[str | page.Table | page.Figure] = [study.question]
    if study.expected:
        blocks.append(f"Expected: {study.expected}")
    if done < runs:
        blocks.append(
            f"{runs - done} of {runs} runs are not finished and count nowhere; see below."
        )
    if outcomes.left_out:
        files = messages.counted(len(outcomes.left_out), "file of a run", "files of runs")
        blocks.append(f'Not in the numbers: {files}; see "Left out" below.')
    return blocks + [_verdict(outcomes, found, name) for name in outcomes.benchmarks()]


def _verdict(
    outcomes: outcomes_lib.Outcomes, found: Sequence[numbers.Score], benchmark: str
) -> str:
    """What can be said of a benchmark, in sentences that its numbers hold up."""
    of_one = [one for one in found if one.benchmark == benchmark]
    text = f"{benchmark}. "
    if not of_one:
        return text + "No finished run has a result."
    for mode in outcomes_lib.SEEING:
        ranked = sorted(
            (one for one in of_one if one.mode == mode), key=lambda one: -one.mean.value
        )
        if not ranked:
            continue
        best, last = ranked[0], ranked[-1]
        if best.mean.value > last.mean.value:
            said = (
                f"from {tables.score_cell(last)} ({last.trial}) to {tables.score_cell(best)}"
                f" ({best.trial})"
            )
        else:
            said = tables.score_cell(best) + (" of each" if len(ranked) > 1 else "")
        text += f"{mode.capitalize()} prompts: {said}. "
    differences = [one.difference for one in of_one if one.difference is not None]
    if differences:
        by_seeds = sum(d.p_seeds is not None and d.p_seeds < _LEVEL for d in differences)
        by_questions = sum(
            d.p_questions is not None and d.p_questions < _LEVEL for d in differences
        )
        tested = any(d.p_seeds is not None for d in differences)
        over_seeds = f"{by_seeds} differ over seeds" if tested else "none can be tested over seeds"
        halves = [100 * d.mean.half for d in differences if d.mean.half is not None]
        text += (
            f"Of {len(differences)} comparisons with {outcomes.study.baseline}, {over_seeds}"
            f" and {by_questions} differ over questions at a corrected p below {_LEVEL:g}."
        )
        if halves:
            text += f" The median interval of a difference is ± {statistics.median(halves):.1f} points wide."
    return text


def _benchmark(
    outcomes: outcomes_lib.Outcomes, found: Sequence[numbers.Score], benchmark: str
) -> list[page.Section]:
    study, modes = outcomes.study, outcomes.modes(benchmark)
    if not modes:
        return []
    blocks: list[str | page.Table | page.Figure] = []
    rows = outcomes.result(benchmark)["table"][:-1]
    switching = any("direction" in row for row in rows)
    if study.plot == "curve":
        blocks.append(figures.curve(outcomes, found, benchmark))
    if switching:
        for mode in (mode for mode in outcomes_lib.SEEING if mode in modes):
            blocks += figures.switches(outcomes, benchmark, mode)
        blocks.append(tables.directions(outcomes, benchmark))
    if study.plot == "table" and set(outcomes_lib.SEEING) & set(modes):
        blocks.append(figures.ranking(outcomes, found, benchmark))
    blocks.append(tables.scores(outcomes, found, benchmark))
    if compared := tables.differences(outcomes, found, benchmark):
        blocks.append(compared)
    if 1 < len({row["kind"] for row in rows}) <= _MOST_KINDS:
        blocks += [
            tables.kinds(outcomes, found, benchmark, mode)
            for mode in modes
            if mode in outcomes_lib.SEEING
        ]
    sections = [page.Section(benchmark, blocks)]
    traced = {t.name: one for t in outcomes.trials if (one := numbers.gates(t, benchmark))}
    if traced:
        text = (
            "A frame is of the class of the talk in it: about the image, off-topic, or silence. A gate that"
            " tells them apart is open for the image and shut else; in silence nothing in the loss shuts it."
        )
        chart, table = figures.gates(traced, benchmark), tables.gate_means(outcomes, traced)
        sections.append(page.Section(f"{benchmark}: gate activation", [text, chart, table]))
    return sections


def _cost(outcomes: outcomes_lib.Outcomes, found: Sequence[numbers.Score]) -> list[page.Section]:
    blocks: list[str | page.Table | page.Figure] = []
    for benchmark in outcomes.benchmarks():
        for mode in (mode for mode in outcomes.modes(benchmark) if mode in outcomes_lib.SEEING):
            if figure := figures.cost(outcomes, found, benchmark, mode):
                blocks.append(figure)
    table = tables.costs(outcomes)
    return [page.Section("Cost", [*blocks, table])] if table else []


def _paper(outcomes: outcomes_lib.Outcomes, name: str) -> page.Section:
    known = paper.find(name)
    same = [benchmark for benchmark in outcomes.benchmarks() if paper.is_same(benchmark)]
    if same:
        note = f"The same benchmark as the paper's: {', '.join(same)}. {paper.NOT_PUBLISHED}"
    else:
        note = (
            f"None of our benchmarks ({', '.join(outcomes.benchmarks()) or 'none'}) is the paper's, and our"
            " models are not its 7 B ones: shapes can be compared, numbers cannot."
        )
    figure = figures.of_paper(known, name)
    return page.Section(
        "The paper's numbers",
        [note, known.note, *([figure] if figure else []), tables.of_paper(known)],
    )


def _method(outcomes: outcomes_lib.Outcomes) -> list[str | page.Table | page.Figure]:
    blocks: list[str | page.Table | page.Figure] = [numbers.METHOD]
    for benchmark in outcomes.benchmarks():
        result = outcomes.result(benchmark)
        if not result:
            continue
        limit, count = result.get("limit"), result["table"][-1].get("n")
        of = "limit not recorded" if "limit" not in result else f"--limit {limit}"
        of = "all samples" if limit is None and "limit" in result else of
        runs = [run for trial in outcomes.trials for run in trial.finished()]
        own = [run.results[benchmark] for run in runs if benchmark in run.results]
        steps = ", ".join(map(str, sorted({one["step"] for one in own if "step" in one})))
        protocol = _flat({k: v for one in own for k, v in comparable.protocol(one).items()})
        blocks.append(
            f"{benchmark}: {messages.counted(count, 'question') if count else 'questions not counted'}"
            f" ({of}), step {steps or 'not recorded'}. Prompts: {protocol}."
        )
    return blocks


def _flat(protocol: Mapping[str, Any]) -> str:
    words = [f"{key.replace('_', ' ')} {value}" for key, value in protocol.items()]
    return ", ".join(words) or "not recorded"
