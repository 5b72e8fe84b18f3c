"""A benchmark's written questions as a callback of the training loop (`mvjax train --evaluate`)."""

from __future__ import annotations

import dataclasses

import jax

from mvjax.config import schema
from mvjax.eval import benchmarks, metrics, runner
from mvjax.eval import model as eval_model
from mvjax.train import callbacks


def callback(
    run: schema.Config, *, benchmark: benchmarks.Benchmark, every: int, limit: int = 24
) -> callbacks.Callback:
    """Returns a callback that asks `limit` written questions every `every` steps.

    Its metrics are NAME_accuracy, the overall score, and NAME_accuracy/KIND.

    Raises:
      ValueError: in a run of several processes, of which none holds the whole model.
    """
    name = benchmark.name
    if jax.process_count() > 1:
        raise ValueError(
            f"evaluation during training: expected a run of one process, got {jax.process_count()}; "
            f"evaluate its checkpoints with `mvjax eval RUN --benchmark {name}`"
        )
    loaded = eval_model.load(run, {})
    samples = benchmark.samples(limit, 1)

    def evaluate(step: int, state: callbacks.ModelState) -> dict[str, float]:
        del step
        model = dataclasses.replace(loaded, params=state.params)
        table = runner.evaluate(model, benchmark, samples, ["text"]).table
        accuracy = {f"{name}_accuracy/{row['kind']}": row["text"] for row in table}
        return {key.removesuffix(f"/{metrics.ALL}"): value for key, value in accuracy.items()}

    return callbacks.Callback(every, evaluate, f"{name} benchmark")
