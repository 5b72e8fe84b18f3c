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
from mvjax.train import callbacks, distributed, trackers

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

    def evaluate(step: int, state: callbacks.ModelState) -> callbacks.Findings:
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
        sounds: dict[str, trackers.Sound] = {}
        if distributed.is_first():
            place = folder / FOLDER / f"{benchmark.name}@{step}"
            results.write(place.with_name(f"{place.name}.json"), evaluation, asked)
            if settings.examples:
                sounds = _write_examples(place, model, evaluation, settings.examples)
        tables = {
            f"{benchmark.name}/scores": evaluation.table,
            f"{benchmark.name}/answers": _answers(evaluation, settings.examples, sounds),
        }
        return callbacks.Findings(_metrics(benchmark, evaluation), tables)

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


def _answers(
    evaluation: runner.Evaluation, count: int, sounds: Mapping[str, trackers.Sound]
) -> list[trackers.Row]:
    """The first answers of each mode, for trackers."""
    return [
        {
            "prompts": mode,
            "id": answer.id,
            "kind": answer.kind,
            "prompt": answer.prompt,
            "said": answer.said,
            "score": answer.score,
            "sound": sounds.get(answer.id) if mode == "audio" else None,
        }
        for mode, answers in evaluation.answers.items()
        for answer in answers[:count]
    ]


def _write_examples(
    place: Path, model: eval_model.LoadedModel, evaluation: runner.Evaluation, count: int
) -> dict[str, trackers.Sound]:
    """Writes the first answers of each mode: as text, and those that were spoken as sound (returned)."""
    place.mkdir(parents=True, exist_ok=True)
    lines = []
    for mode, answers in evaluation.answers.items():
        lines += [f"## {mode}", ""]
        for answer in answers[:count]:
            score = "" if answer.score is None else f" ({answer.score:g})"
            lines.append(f"- {answer.prompt!r} -> {answer.said!r}{score}, {answer.id}")
        lines.append("")
    (place / "answers.md").write_text("\n".join(lines))
    sounds = {}
    for name, conversation in evaluation.spoken.items():
        sides = [conversation.streams.user_codes, conversation.streams.audio_codes]
        clips = np.stack(model.decode_audio(sides), axis=1)
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
        sounds[name] = trackers.Sound(place / f"{safe}.wav")
        soundfile.write(sounds[name].path, clips, types.SAMPLE_RATE)
    return sounds
