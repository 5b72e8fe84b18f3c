"""Can a run learn at all: are there targets and images in its first batches?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from mvjax import tree, types
from mvjax.config import schema
from mvjax.data import mixing
from mvjax.train import distributed, load
from mvjax.train import loss as loss_lib

_BATCHES, _ROWS = 4, 64  # looked at, at least, before a run is refused


def check(
    run: schema.Config, batch: Callable[[int], types.Batch], *, say: Callable[[str], None]
) -> None:
    """Looks for targets and images in the next batches, the first of which is `batch(0)`, of all processes.

    What only one part of the batches lacks is told to `say`.

    Raises:
      ValueError: if no row has a target with a weight, or none has an image and only what sees it is trained.
    """
    names = [name for name in mixing.PARTS if getattr(run.data, f"{name}_rows")]
    wanted = ["an image", *(f"a text target in {name} rows" for name in names)]
    if run.loss.trained_codebooks and run.loss.audio_weight:
        wanted += ["an audio target"] * ("speech" in names)
    found: set[str] = set()
    batches = max(_BATCHES, -(-_ROWS // (run.data.speech_rows + run.data.speechless_rows)))
    for number in range(batches):
        found |= _found(run, batch(number), names)
        found = {one for one in wanted if distributed.anywhere(one in found)}
        if len(found) == len(wanted):
            return
    lacking = [one for one in wanted if one not in found]
    first = f"the first {batches} batches have no row with"
    if len(found - {"an image"}) == 0:
        raise ValueError(
            f"{first} a target: there is nothing to learn. Rows end after {run.data.speech_frames} frames"
            f" (data.speech_frames) and {run.data.speechless_tokens} tokens (data.speechless_tokens), which"
            " questions alone may fill; `mvjax data show` prints records"
        )
    if "an image" in lacking and _only_sees(run):
        raise ValueError(
            f"{first} an image: what is trained would have no gradient; give the sources records with images"
        )
    say(f"{first} {' or '.join(lacking)}: is that meant? Rows may be too short for their questions")


def _found(run: schema.Config, batch: types.Batch, names: list[str]) -> set[str]:
    """What the rows of this process have, in the words of `check`."""
    found = set()
    for name in names:
        part: Any = getattr(batch, name)
        if np.any(part.has_image):
            found.add("an image")
        weight = loss_lib.text_weight(
            jnp.asarray(part.codes[:, 0]),
            jnp.asarray(part.loss_mask),
            model=run.model,
            loss=run.loss,
        )
        if run.loss.text_weight and np.any(np.asarray(weight) > 0):
            found.add(f"a text target in {name} rows")
    if np.any(batch.speech.codes[:, 1 : 1 + run.loss.trained_codebooks] >= 0):
        found.add("an audio target")
    return found


def _only_sees(run: schema.Config) -> bool:
    """Whether all that is trained takes part in cross-attention to the image."""
    sees = (
        "xa/",
        "gate/",
        "image/",
        "backbone/blocks/xa",
        "backbone/blocks/gate",
        "backbone/blocks/norm_xa",
    )
    return all(path.startswith(sees) for path in tree.flatten(load.shapes(run).adapters))
