"""A benchmark as a callback of the training loop: `config.evals`, and `mvjax train --evaluate`.

RUN/eval/training/NAME@STEP.json      scores, as `mvjax eval` writes them
                  NAME@STEP/answers.md   a few answers to look at
                  NAME@STEP/ID.wav       the spoken ones: the user on the left, the model on the right
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import soundfile

from mvjax import run_folder, tree, types
from mvjax.config import evaluating, schema
from mvjax.eval import benchmarks, metrics, results, runner
from mvjax.eval import model as eval_model
from mvjax.train import callbacks, distributed

FOLDER = f"{run_folder.EVAL}/training"


def callback(
    run: schema.Config,
    folder: Path,
    benchmark: benchmarks.Benchmark,
    settings: evaluating.EvalConfig,
) -> callbacks.Callback:
    """Returns a callback that asks a run's benchmark and writes results into its folder.

    Its metrics are NAME_METRIC_MODE, the overall score, and NAME_METRIC_MODE/KIND. All processes of a run
    take part: the parameters stay where they are, and the rows are sharded as in training.

    Raises:
      ValueError: if the benchmark lacks a mode.
    """
    runner.check_modes(benchmark, settings.modes)
    loaded = eval_model.load(run, {})
    samples = benchmark.samples(settings.limit, settings.seed)

    def evaluate(step: int, state: callbacks.ModelState) -> Mapping[str, float]:
        params = state.params
        leaf = next(iter(tree.flatten(params).values()))
        placed = leaf.sharding if isinstance(leaf, jax.Array) else None
        mesh = placed.mesh if isinstance(placed, jax.sharding.NamedSharding) else None
        model = dataclasses.replace(loaded, params=params, mesh=mesh)
        asked = results.Asked(
            benchmark=benchmark,
            config=run,
            step=step,
            checkpoint="",
            protocol=benchmark.protocol,
            seed=settings.seed,
            limit=settings.limit,
            batch_size=runner.BATCH_SIZE,
        )
        evaluation = runner.evaluate(
            model, benchmark, samples, settings.modes, keep_spoken=settings.examples
        )
        if distributed.is_first():
            place = folder / FOLDER / f"{benchmark.name}@{step}"
            results.write(place.with_name(f"{place.name}.json"), evaluation, asked)
            if settings.examples:
                _write_examples(place, model, evaluation, settings.examples)
        return _metrics(benchmark, evaluation)

    return callbacks.Callback(settings.every, evaluate, f"{benchmark.name} benchmark")


def _metrics(benchmark: benchmarks.Benchmark, evaluation: runner.Evaluation) -> dict[str, float]:
    prefix = f"{benchmark.name}_{benchmark.metric}"
    named = {
        f"{prefix}_{mode}/{row['kind']}": row[mode]
        for mode in evaluation.answers
        for row in evaluation.table
        if row[mode] is not None
    }
    return {name.removesuffix(f"/{metrics.ALL}"): score for name, score in named.items()}


def _write_examples(
    place: Path, model: eval_model.LoadedModel, evaluation: runner.Evaluation, count: int
) -> None:
    """Writes the first answers of each mode: as text, and those that were spoken as sound."""
    place.mkdir(parents=True, exist_ok=True)
    lines = []
    for mode, answers in evaluation.answers.items():
        lines += [f"## {mode}", ""]
        for answer in answers[:count]:
            score = "" if answer.score is None else f" ({answer.score:g})"
            lines.append(f"- {answer.prompt!r} -> {answer.said!r}{score}, {answer.id}")
        lines.append("")
    (place / "answers.md").write_text("\n".join(lines))
    for name, conversation in evaluation.spoken.items():
        sides = [conversation.streams.user_codes, conversation.streams.audio_codes]
        clips = np.stack(model.decode_audio(sides), axis=1)
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        soundfile.write(place / f"{safe}.wav", clips, types.SAMPLE_RATE)
