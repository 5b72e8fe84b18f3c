"""Trains the digits world for a few steps with each `train.frozen_dtype`; prints how the losses differ.

    python tools/bench_frozen_dtype.py RECORDS --steps 12

RECORDS is the record folder of a quickstart (`DIR/data`), or an empty one, where the records are made first.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import numpy as np

from mvjax import types
from mvjax.config import schema
from mvjax.data import mixture
from mvjax.digits import recipe
from mvjax.train import load, sharding, step

KINDS: tuple[schema.FrozenDtype, ...] = ("as stored", "bfloat16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    args = parser.parse_args()
    run = recipe.digits()
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, root=str(args.records)))
    data = mixture.batches(run)
    batches = [data[number] for number in range(args.steps)]
    exact, _ = losses(run, batches, "as stored")
    for kind in args.kinds:
        curve, size = losses(run, batches, kind)
        error = np.abs(curve / exact - 1)
        print(
            f"{kind}: frozen weights {size / 1e6:.1f} MB; loss {curve[0]:.5f} ... {curve[-1]:.5f}; "
            f"relative difference {error.mean():.1e} on average, {error.max():.1e} at most",
            flush=True,
        )


def losses(
    run: schema.Config, batches: list[types.Batch], kind: schema.FrozenDtype
) -> tuple[np.ndarray, int]:
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, frozen_dtype=kind))
    mesh = sharding.make_mesh(run.mesh)
    params = load.weights(run, mesh)
    state = step.new_state(run, mesh, params.adapters)
    train_step = step.make(run, mesh, adapters=state.adapters, frozen=params.frozen)
    curve = []
    for batch in batches:
        state, metrics = train_step(
            state, params.frozen, jax.device_put(batch, sharding.rows(mesh))
        )
        curve.append(float(metrics["loss"]))
    return np.array(curve), sum(leaf.nbytes for leaf in jax.tree.leaves(params.frozen))


if __name__ == "__main__":
    main()
