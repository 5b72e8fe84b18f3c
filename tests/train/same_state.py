"""Compares what two checkpoints hold, every array of them."""

from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from mvjax import tree
from mvjax.train import checkpoint


def check(first: checkpoint.Checkpoint, second: checkpoint.Checkpoint) -> None:
    """Same adapters, their mean, optimizer state and counters, bit for bit."""
    one, other = _arrays(first.folder), _arrays(second.folder)
    assert one.keys() == other.keys() and one
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    arrays = {}
    for item in (checkpoint.ADAPTERS, checkpoint.OPTIMIZER, checkpoint.EMA):
        if (folder / item).is_dir():
            with ocp.StandardCheckpointer() as checkpointer:
                restored = tree.flatten(checkpointer.restore((folder / item).absolute()))
            arrays |= {f"{item}/{path}": np.asarray(leaf) for path, leaf in restored.items()}
    return arrays
