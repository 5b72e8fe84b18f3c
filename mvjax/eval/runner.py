"""Asks a model the samples of a benchmark, many at once, and scores its answers."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mvjax import messages
from mvjax.eval import answering, asking, benchmarks, image_files, journal, metrics
from mvjax.eval import model as eval_model
from mvjax.train import distributed

BATCH_SIZE = 64

Say = Callable[[str], None]


def quiet(text: str) -> None:
    """Says nothing."""
    del text


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Answers by mode, in the order of the samples."""

    samples: Sequence[benchmarks.Sample]
    answers: Mapping[str, list[metrics.ScoredAnswer]]
    table: list[dict[str, Any]]  # rows as of `metrics.table`, with a column "chance"
    intervals: Mapping[str, tuple[float, float]]  # of the last row, by mode
    # {class of frames: mean gate activation of each layer}, of spoken conversations if there are any
    gates: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0  # that the answers took, in all sessions
    # conversations of mode "audio" by sample id, as many as were asked for
    spoken: Mapping[str, answering.SpokenConversation] = dataclasses.field(default_factory=dict)


class Task(NamedTuple):
    """One sample to be asked in one mode."""

    sample: benchmarks.Sample
    image: benchmarks.LoadImage | None
    asked: asking.Written | asking.Spoken


def evaluate(
    model: eval_model.LoadedModel,
    benchmark: benchmarks.Benchmark,
    samples: Sequence[benchmarks.Sample],
    modes: Sequence[benchmarks.PromptMode],
    *,
    protocol: benchmarks.PromptProtocol | None = None,
    batch_size: int = BATCH_SIZE,
    log: journal.Journal | None = None,
    keep_spoken: int = 0,
    say: Say = quiet,
) -> Evaluation:
    """Asks every sample in each mode, greedily, and scores the answers.

    Of several processes each calls it with the same arguments; all return the same.

    Args:
      model: to ask.
      benchmark: scores.
      samples: of the benchmark.
      modes: of prompts.
      protocol: by default the benchmark's.
      batch_size: conversations at once; rounded up to a multiple of the devices that rows are on.
      log: where answers are written as they come, and read from; the first process's.
      keep_spoken: conversations of so many of the first samples are returned.
      say: is told of progress.

    Raises:
      ValueError: as `check`.
    """
    check(benchmark, samples, modes)
    answerer = answering.Answerer(model, protocol or benchmark.protocol)
    known = _known(distributed.from_first(lambda: _read(log, samples)), samples)
    kept = {sample.id for sample in samples[:keep_spoken]}
    spoken: dict[str, answering.SpokenConversation] = {}
    for mode in modes:
        done = sum((mode, sample.id) in known for sample in samples)
        for batch, answers, seconds in _asked(
            answerer, samples, mode, batch_size=batch_size, known=known
        ):
            tag = {"seconds": round(seconds, 6), "batch": [batch[0].sample.id, len(batch)]}
            lines = [
                _line(benchmark, task.sample, mode, answer) | tag
                for task, answer in zip(batch, answers, strict=True)
                if (mode, task.sample.id) not in known
            ]
            if log is not None:
                log.write(lines)
            known |= {(mode, line["id"]): line for line in lines}
            for task, answer in zip(batch, answers, strict=True):
                if task.sample.id in kept and answer.spoken is not None:
                    spoken[task.sample.id] = answer.spoken
            done += len(lines)
            say(f"{benchmark.name}, {mode}: {done} of {len(samples)}")
    return _evaluation(benchmark, samples, modes, known, spoken)


def check_modes(benchmark: benchmarks.Benchmark, modes: Sequence[str]) -> None:
    """Raises ValueError for modes that a benchmark lacks."""
    lacking = [mode for mode in modes if mode not in benchmark.modes]
    if lacking:
        raise ValueError(
            f"benchmark {benchmark.name}: expected modes among {', '.join(benchmark.modes)}, got"
            f" {', '.join(lacking)}"
        )


def check(
    benchmark: benchmarks.Benchmark,
    samples: Sequence[benchmarks.Sample],
    modes: Sequence[str],
) -> None:
    """Checks that samples can be asked in these modes.

    Raises:
      ValueError: if the benchmark lacks a mode, there is no sample or two have the same id, or as
        `benchmarks.shuffled`.
    """
    check_modes(benchmark, modes)
    counts = collections.Counter(sample.id for sample in samples)
    twice = [name for name, count in counts.items() if count > 1]
    if twice or not samples:
        fact = f"these more than once: {messages.names(twice)}" if twice else "none"
        raise ValueError(
            f"benchmark {benchmark.name}: expected samples with ids of their own, got {fact}"
        )
    if "shuffled" in modes:
        benchmarks.shuffled(samples)


Known = dict[tuple[str, str], journal.Line]  # by (mode, sample id)


def _read(log: journal.Journal | None, samples: Sequence[benchmarks.Sample]) -> list[journal.Line]:
    """The lines, without what only a reader of the file wants: they go to all processes."""
    lines = [] if log is None else image_files.unchanged(log.lines, samples)
    return [{name: value for name, value in line.items() if name != "trace"} for line in lines]


def _known(lines: Iterable[journal.Line], samples: Sequence[benchmarks.Sample]) -> Known:
    """Lines about these samples, asked with these words."""
    prompts = {sample.id: sample.prompt for sample in samples}
    return {
        (line["mode"], line["id"]): line
        for line in lines
        if prompts.get(line["id"]) == line["prompt"]
    }


def _complete(known: Known, mode: str) -> set[str]:
    """Samples of batches that were written whole: others are asked again, in the same batch as before.

    So every answer is computed as in a run that nobody killed, to the bit. A batch is known by its first
    sample and its size.
    """
    batches: dict[tuple[str, int], list[str]] = {}
    for (its_mode, name), line in known.items():
        if its_mode == mode:
            batches.setdefault(tuple(line["batch"]), []).append(name)
    whole = (names for (_, size), names in batches.items() if len(names) == size)
    return {name for names in whole for name in names}


def _asked(
    answerer: answering.Answerer,
    samples: Sequence[benchmarks.Sample],
    mode: benchmarks.PromptMode,
    *,
    batch_size: int,
    known: Known,
) -> Iterator[tuple[list[Task], list[answering.Answer], float]]:
    """Yields batches of what is not known yet, their answers and the seconds that each took."""
    if all((mode, sample.id) in known for sample in samples):
        return
    tasks = _tasks(answerer, samples, mode, done=_complete(known, mode))
    rows = min(batch_size, len(samples))
    for batch, inputs in _loaded(answerer, _batches(tasks, rows), rows):
        began = time.perf_counter()
        answers = answerer.answer([task.asked for task in batch], inputs, rows)
        yield batch, answers, (time.perf_counter() - began) / len(batch)


def _loaded(
    answerer: answering.Answerer, batches: Iterator[list[Task]], rows: int
) -> Iterator[tuple[list[Task], answering.Inputs]]:
    """Yields batches with their inputs, prefetched: made ready while the batch before is answered."""

    def load() -> tuple[list[Task], answering.Inputs] | None:
        if (batch := next(batches, None)) is None:
            return None
        images = [task.image for task in batch]
        return batch, answerer.load([task.asked for task in batch], images, rows)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(load)
        while (ready := coming.result()) is not None:
            coming = pool.submit(load)
            yield ready


def _tasks(
    answerer: answering.Answerer,
    samples: Sequence[benchmarks.Sample],
    mode: benchmarks.PromptMode,
    *,
    done: set[str],
) -> Iterator[Task]:
    others = benchmarks.shuffled(samples) if mode == "shuffled" else range(len(samples))
    for sample, other in zip(samples, others, strict=True):
        if sample.id not in done:
            image = None if mode == "blind" else asking.image(samples[other])
            yield Task(sample, image, answerer.prepare(sample, spoken=mode == "audio"))


def _batches(tasks: Iterable[Task], size: int) -> Iterator[list[Task]]:
    """Tasks of one shape, as many as `size` as soon as there are; those that are left come last."""
    queues: dict[Any, list[Task]] = {}
    for task in tasks:
        key = (task.asked.key, task.image is None)
        queue = queues.setdefault(key, [])
        queue.append(task)
        if len(queue) == size:
            yield queues.pop(key)
    yield from queues.values()


def _line(
    benchmark: benchmarks.Benchmark,
    sample: benchmarks.Sample,
    mode: str,
    answer: answering.Answer,
) -> journal.Line:
    said = answer.said if answer.choice is None else sample.choices[answer.choice]
    line: journal.Line = {
        "id": sample.id,
        "mode": mode,
        "kind": sample.kind,
        "prompt": sample.prompt,
        "said": said,
        "score": benchmark.score(sample, said),
        "gates": answer.gates,
    }
    more: dict[str, Any] = {"trace": answer.trace, "log_likelihoods": answer.log_likelihoods}
    more["image"] = image_files.stamp(sample, mode)
    return line | {name: value for name, value in more.items() if value is not None}


def _evaluation(
    benchmark: benchmarks.Benchmark,
    samples: Sequence[benchmarks.Sample],
    modes: Sequence[str],
    known: Known,
    spoken: Mapping[str, answering.SpokenConversation],
) -> Evaluation:
    """Scores what was said anew: a scorer that was mended since counts."""
    lines = {mode: [known[mode, sample.id] for sample in samples] for mode in modes}
    answers = {
        mode: [
            metrics.ScoredAnswer(
                s.id, s.kind, s.prompt, line["said"], benchmark.score(s, line["said"])
            )
            for s, line in zip(samples, lines[mode], strict=True)
        ]
        for mode in modes
    }
    summaries = {mode: benchmark.summary(given) for mode, given in answers.items()}
    return Evaluation(
        samples=samples,
        answers=answers,
        table=_table(benchmark, answers, summaries),
        intervals={mode: summary.interval for mode, summary in summaries.items()},
        gates=_mean_gates(lines),
        seconds=sum(line["seconds"] for given in lines.values() for line in given),
        spoken=spoken,
    )


def _table(
    benchmark: benchmarks.Benchmark,
    answers: Mapping[str, Sequence[metrics.ScoredAnswer]],
    summaries: Mapping[str, metrics.Summary],
) -> list[dict[str, Any]]:
    *rows, total = metrics.table(answers, summaries)
    for row in rows:
        row |= {"chance": benchmark.chance(row["kind"])} | benchmark.columns(row["kind"])
    chances = [row["chance"] for row in rows]
    known = chances and None not in chances
    return [*rows, total | {"chance": float(np.mean(chances)) if known else None}]


def _mean_gates(lines: Mapping[str, Sequence[journal.Line]]) -> dict[str, list[float]]:
    """Means over samples, of spoken conversations if they were asked, else of written ones."""
    mode = next((mode for mode in ("audio", "text") if mode in lines), None)
    found: dict[str, list[list[float]]] = {}
    for line in lines[mode] if mode else ():
        for name, layers in (line["gates"] or {}).items():
            found.setdefault(name, []).append(layers)
    return {name: np.mean(rows, axis=0).round(6).tolist() for name, rows in found.items()}
