"""Hugging Face SigLIP and PaliGemma safetensors: the image encoder in them, as big_vision's tree.

The encoder's names are those of reference section 3.4 behind a prefix that depends on the model around it.
"""

from __future__ import annotations

import re
from pathlib import Path

from mvjax import files, messages
from mvjax.config import schema
from mvjax.weights import lazy, leaf_view, positions, rules, safetensors_io, siglip_names

# `SiglipVisionModel`, `SiglipModel`; PaliGemma as saved by older and newer transformers
PREFIXES = (
    "",
    "vision_model.",
    "vision_tower.",
    "vision_tower.vision_model.",
    "model.vision_tower.",
    "model.vision_tower.vision_model.",
)
NOT_USED = (  # named parts of a file that the encoder has no use for
    r"{prefix}head\..*",  # SigLIP's pooling head
    r"{prefix}embeddings\.position_ids",
    r"text_model\..*",  # SigLIP's text tower
    r"logit_(scale|bias)",
    r"(model\.)?(language_model|multi_modal_projector)\..*",  # PaliGemma
    r"lm_head\..*",
)
_FIRST = "embeddings.patch_embedding.weight"
_POSITIONS = "embeddings.position_embedding.weight"


def open_siglip(path: str | Path, config: schema.SiglipConfig) -> dict[str, leaf_view.LeafView]:
    """Returns {path in `nn.siglip.Siglip`: leaf} in float32, to be read slice by slice.

    The location is that of a safetensors file, of an index of several, or of a folder with either. Positions
    of another image size are resampled.

    Raises:
      ValueError: naming the file and every missing, unexpected or misshapen tensor.
    """
    path = files.resolve(path, names=files.WEIGHTS)
    tensors = safetensors_io.tensors(path)
    prefixes = [p for p in PREFIXES if f"{p}{_FIRST}" in tensors]
    if len(prefixes) != 1:
        raise ValueError(
            f"{path}: expected one image encoder, a tensor {_FIRST} behind one of {list(PREFIXES)},"
            f" found {len(prefixes)} among {messages.names(sorted(tensors), shown=5)}"
        )
    prefix = prefixes[0]
    unused = [pattern.format(prefix=re.escape(prefix)) for pattern in NOT_USED]
    used: dict[str, lazy.LazyTensor] = {
        n: t for n, t in tensors.items() if not any(re.fullmatch(r, n) for r in unused)
    }
    if (name := prefix + _POSITIONS) in used:
        used[name] = positions.fit(used[name], config, place=str(path))
    table = siglip_names.siglip_rules(ours="", upstream=prefix)
    return rules.leaf_views(used, table, siglip_names.sizes(config), place=str(path))
