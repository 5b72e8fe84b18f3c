"""A benchmark's written questions as a callback of the training loop (`mvjax train --evaluate`)."""

from __future__ import annotations

import dataclasses

import jax

from mvjax.config import schema
from mvjax.eval import benchmarks, metrics
from mvjax.eval import model as eval_model
from mvjax.train import callbacks


def callback(
    run: schema.Config, *, benchmark: benchmarks.Benchmark, name: str, every: int, per_kind: int = 4
) -> callbacks.Callback:
    """Returns a callback that asks `per_kind` written questions of each kind every `every` steps.

    Its metrics are NAME_accuracy, the mean over kinds, and NAME_accuracy/KIND.

    Raises:
      ValueError: in a run of several processes, of which none holds the whole model.
    """
    if jax.process_count() > 1:
        raise ValueError(
            f"evaluation during training: expected a run of one process, got {jax.process_count()}; "
            f"evaluate its checkpoints with `mvjax eval RUN --benchmark {name}`"
        )
    loaded = eval_model.load(run, {})
    questions = benchmark.questions(per_kind=per_kind, seed=1)

    def evaluate(step: int, state: callbacks.ModelState) -> dict[str, float]:
        del step
        model = dataclasses.replace(loaded, params=state.params)
        table = benchmarks.evaluate(model, benchmark, questions, ["text"]).table
        accuracy = {f"{name}_accuracy/{row['kind']}": row["text"] for row in table}
        return {key.removesuffix(f"/{metrics.ALL}"): value for key, value in accuracy.items()}

    return callbacks.Callback(every, evaluate, f"{name} benchmark")
