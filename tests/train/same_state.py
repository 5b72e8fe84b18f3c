"""Compares what two checkpoints hold, every array of them."""

from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from mvjax.train import checkpoint


def check(first: checkpoint.Found, second: checkpoint.Found) -> None:
    """Same adapters, their mean, optimizer state and counters, bit for bit."""
    one, other = _arrays(first.folder), _arrays(second.folder)
    assert one.keys() == other.keys() and one
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for part in ("adapters", "optimizer", checkpoint.MEAN):
        if (folder / part).is_dir():
            with ocp.StandardCheckpointer() as checkpointer:
                leaves = checkpointer.restore((folder / part).absolute())
            found |= {f"{part}/{name}": np.asarray(leaf) for name, leaf in leaves.items()}
    return found
