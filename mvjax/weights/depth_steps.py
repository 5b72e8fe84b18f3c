"""Takes the assistant's depth steps from a Moshi whose depth transformer also predicts the user's streams.

PersonaPlex, and Moshi as nu-dialogue/moshi-finetune trains it, have a step for each of their 16 audio
streams, the assistant's first. Step q attends to steps 0 .. q, so the first steps compute the same alone.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping

from mvjax.config import schema
from mvjax.weights import lazy

_LOG = logging.getLogger(__name__)
_HEAD = re.compile(r"linears\.(\d+)\.weight")
# one tensor a step: step q's, or the embedding of step q's code, which enters at step q + 1
_STEP = re.compile(r"(?:depformer_in|linears|depformer\.layers\.\d+\.gating)\.(\d+)\..*")
_CODE = re.compile(r"depformer_emb\.(\d+)\.weight")
_FUSED = re.compile(r"depformer\.layers\.\d+\.self_attn\.(?:in_proj_weight|out_proj\.weight)")


def assistant(
    tensors: Mapping[str, lazy.LazyTensor], config: schema.ModelConfig, *, place: str
) -> dict[str, lazy.LazyTensor]:
    """Returns the tensors of the first `codebooks_out` depth steps, and all others; says so once.

    Args:
      tensors: of base Moshi, with fused attention projections.
      config: the sizes wanted; without the user's streams in the file, nothing is taken away.
      place: the file, for the note.
    """
    steps, wanted = sum(_HEAD.fullmatch(name) is not None for name in tensors), config.codebooks_out
    if steps != config.codebooks - 1 or steps <= wanted or steps % wanted:
        return dict(tensors)
    _note(place, steps, wanted)
    kept = {}
    for name, tensor in tensors.items():
        if _FUSED.fullmatch(name) and tensor.shape[0] % (steps // wanted) == 0:
            kept[name] = lazy.row_block(tensor, 0, steps // wanted)
            continue
        step, code = _STEP.fullmatch(name), _CODE.fullmatch(name)
        late = (step and int(step[1]) >= wanted) or (code and int(code[1]) >= wanted - 1)
        if not late:
            kept[name] = tensor
    return kept


@functools.cache
def _note(place: str, steps: int, wanted: int) -> None:
    _LOG.warning(
        "%s has %d depth steps, of which the last %d predict the user; the first %d are loaded",
        place, steps, steps - wanted, wanted,
    )  # fmt: skip
