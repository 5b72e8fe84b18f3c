"""What a trial's model costs: trained parameters, and a frame by XLA's count; once for all seeds."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import re
import threading
from pathlib import Path
from typing import Any

import jax

from mvjax import files, tree
from mvjax.config import schema, text
from mvjax.runtimes.jax import frame_cost
from mvjax.sweep import trials
from mvjax.train import load

_GATE = re.compile(r"(.*/)?(gate|gate_alpha)(/.*)?")


class Costs:
    """Costs of a sweep's models; each is counted by a process of its own, on a CPU, and kept on disk."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()

    def of(self, run: trials.TrialRun) -> dict[str, Any]:
        """Returns {"parameters", "flops_per_frame", "bytes_per_frame"} of a run's model.

        Raises:
          RuntimeError: saying how counting failed.
        """
        path = run.folder.parent / trials.COST
        described = json.dumps([text.to_json(run.config.model), run.config.train.trained])
        model = hashlib.sha256(described.encode()).hexdigest()
        with self._one_at_a_time:
            known = _read(path, model)
            if known is None:
                known = _in_a_process(_sizes(run.config))
                content = json.dumps({"model": model, "cost": known}, indent=1) + "\n"
                files.write_atomic(path, content.encode(), shared=True)
        return known


def count(config: schema.Config) -> dict[str, Any]:
    """Counts in this process, on its default device."""
    adapters = tree.flatten(load.shapes(config).adapters)
    gate = sum(leaf.size for path, leaf in adapters.items() if _GATE.fullmatch(path))
    frame = frame_cost.count(config.model)
    return {
        "parameters": {"adapters": sum(leaf.size for leaf in adapters.values()), "gate": gate},
        "flops_per_frame": frame.flops,
        "bytes_per_frame": frame.bytes,
    }


def _sizes(config: schema.Config) -> schema.Config:
    """What a count depends on, which another process can be sent."""
    train = schema.TrainConfig(trained=config.train.trained)
    return schema.Config(schema.FrozenFiles("", ""), model=config.model, train=train)


def _read(path: Path, model: str) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_bytes())
        return data["cost"] if data["model"] == model else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _in_a_process(config: schema.Config) -> dict[str, Any]:
    """The sweep itself starts no backend of jax's: an accelerator is left to the trials."""
    fresh = multiprocessing.get_context("spawn")
    answer, write = fresh.Pipe(duplex=False)
    value: Any
    process = fresh.Process(target=_answer, args=(config, write), daemon=True)
    process.start()
    write.close()
    try:
        good, value = answer.recv()
    except EOFError:
        good, value = False, "the process that counts died"
    process.join()
    if not good:
        raise RuntimeError(f"the cost of a frame could not be counted: {value}")
    return value


def _answer(config: schema.Config, write: multiprocessing.connection.Connection) -> None:
    try:
        jax.config.update("jax_platforms", "cpu")
        write.send((True, count(config)))
    except Exception as error:  # told by the process that asked
        write.send((False, f"{type(error).__name__}: {error}"))
