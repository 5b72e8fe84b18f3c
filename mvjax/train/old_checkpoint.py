"""Reads checkpoints of the earlier layout, so that such runs can be resumed, evaluated and exported.

checkpoints/00000250/adapters/    orbax: the trained parameters, by path with | in place of /
                     ema/         likewise
                     optimizer/   orbax: leaves by number, in the order of the optimizer's chain, and counters
                     meta.json    step, config text, frozen weights, and size and SHA-256 of each file
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from mvjax import tree
from mvjax.train import orbax_io
from mvjax.train import step as step_lib

META = "meta.json"


def is_old(folder: Path) -> bool:
    """Returns whether a checkpoint has this layout."""
    return (folder / META).is_file()


def read(folder: Path, abstract: step_lib.TrainState) -> step_lib.TrainState:
    """Returns the whole state, with the shapes and shardings of `abstract`.

    Raises:
      ValueError: if the optimizer state has other leaves than this version's.
    """
    # `optim.make` chains what it chained then, and its named state has the order of the chain.
    leaves, structure = jax.tree.flatten(abstract._replace(adapters=(), ema=None))
    numbered = {f"{number:06d}": leaf for number, leaf in enumerate(leaves)}
    try:
        restored = orbax_io.restore(folder / "optimizer", numbered)
    except ValueError as error:
        raise ValueError(
            f"{folder}: expected the {len(leaves)} numbered leaves of this config's optimizer state and "
            f"counters, got others: {str(error).splitlines()[0]}\n"
            "Its adapters can be evaluated and exported. To train on, use the version of mvjax that "
            "wrote it, or start a run with another --out."
        ) from error
    state = jax.tree.unflatten(structure, [restored[name] for name in numbered])
    return state._replace(
        adapters=read_params(folder / "adapters", abstract.adapters),
        ema=None if abstract.ema is None else read_params(folder / "ema", abstract.ema),
    )


def read_params(folder: Path, abstract: tree.Tree) -> dict[str, Any]:
    """Returns adapters or their mean, shaped as `abstract`."""
    flat = {path.replace("/", "|"): leaf for path, leaf in tree.flatten(abstract).items()}
    restored = orbax_io.restore(folder, flat)
    return tree.unflatten({path.replace("|", "/"): leaf for path, leaf in restored.items()})
