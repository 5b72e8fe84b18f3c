"""What an evaluation leaves in a folder: NAME.json, with the protocol, and what it prints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mvjax import files
from mvjax.config import schema
from mvjax.eval import benchmarks, metrics, runner


class Asked(NamedTuple):
    """What was asked of whom, and how; published with the result."""

    benchmark: benchmarks.Benchmark
    config: schema.Config
    step: int
    checkpoint: str  # identity of the checkpoint
    protocol: benchmarks.PromptProtocol
    seed: int
    limit: int | None
    batch_size: int

    def described(self) -> dict[str, Any]:
        """The prompt protocol as JSON values."""
        return {
            **dataclasses.asdict(self.protocol),
            "decoding": "greedy",
            "seed": self.seed,
            "codec": self.config.frozen.codec,
            "tokenizer": self.config.frozen.tokenizer,
        }

    def facts(self) -> dict[str, Any]:
        """What a result of this evaluation says of it, apart from samples and modes."""
        return {"benchmark": self.benchmark.name, "step": self.step, **self.described()}

    def identity(self) -> dict[str, Any]:
        """What answers depend on, apart from the samples; not the limit, so that a first look goes on."""
        return {
            "benchmark": self.benchmark.name,
            "step": self.step,
            "checkpoint": self.checkpoint,
            "protocol": self.described(),
        }


def write(path: Path, evaluation: runner.Evaluation, asked: Asked) -> None:
    """Writes the result as JSON; the folder is made."""
    devices = jax.devices()
    result = {
        "step": asked.step,
        "benchmark": asked.benchmark.name,
        "metric": asked.benchmark.metric,
        "table": evaluation.table,
        "intervals": evaluation.intervals,
        "protocol": asked.described(),
        "limit": asked.limit,
        "samples": len(evaluation.samples),
        **({"gates": evaluation.gates} if evaluation.gates else {}),
        "seconds": round(evaluation.seconds, 2),
        "batch_size": asked.batch_size,
        "device": f"{len(devices)} x {devices[0].device_kind}",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, (json.dumps(result, indent=1) + "\n").encode())


def text(evaluation: runner.Evaluation, asked: Asked) -> str:
    """The table, the intervals of its last row and the protocol."""
    intervals = ", ".join(
        f"{mode} {100 * low:.1f} to {100 * high:.1f}"
        for mode, (low, high) in evaluation.intervals.items()
    )
    count = len(evaluation.samples)
    of = "all" if asked.limit is None else f"the first look of --limit {asked.limit}:"
    p = asked.protocol
    return "\n".join(
        [
            metrics.text_table(evaluation.table),
            f"{asked.benchmark.metric} x 100; 95% intervals over {of} {count} samples: {intervals}",
            f"protocol: greedy; written: template {p.template!r}, at most {p.max_tokens} tokens; spoken:"
            f" lead-in {p.lead_in:g} s (greeting {p.greeting}), answer from the {p.answer_from}, within"
            f" {p.tail:g} s; seed {asked.seed}",
        ]
    )
