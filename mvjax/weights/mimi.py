"""Kyutai's Mimi file (`tokenizer-e351c8d8-checkpoint125.safetensors`); reference section 6.

Every stored codebook is read; the model uses the first `codebooks` of them. The flag `_initialized` of a
codebook is no parameter: it is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mvjax import messages, tree
from mvjax.codec import flax_codec, quantizer
from mvjax.config import schema
from mvjax.weights import rules, safetensors_io

Row = tuple[str, str, str]  # of a table of rules

_SPELLINGS = (  # other spellings (older files, the `moshi` package's) -> that of the released file
    (r"(.*\._codebook\.)inited$", r"\1_initialized"),
    (r"(.*\._codebook\.)cluster_size$", r"\1cluster_usage"),
    (r"(.*\._codebook\.)(?:embed_avg|embed_sum)$", r"\1embedding_sum"),
    (r"(.*\.self_attn\.)in_projs\.0\.weight$", r"\1in_proj_weight"),
    (r"(.*\.self_attn\.)out_projs\.0\.weight$", r"\1out_proj.weight"),
)
_LAYER = (
    ("norm1/scale", "norm1.weight", "layer D"),
    ("norm1/bias", "norm1.bias", "layer D"),
    ("norm2/scale", "norm2.weight", "layer D"),
    ("norm2/bias", "norm2.bias", "layer D"),
    ("attn/qkv/kernel", "self_attn.in_proj_weight", "layer D 3 N H -> (3 N H) D"),
    ("attn/out/kernel", "self_attn.out_proj.weight", "layer N H D -> D (N H)"),
    ("scale1/scale", "layer_scale_1.scale", "layer D"),
    ("scale2/scale", "layer_scale_2.scale", "layer D"),
    ("mlp_in/kernel", "linear1.weight", "layer D F -> F D"),
    ("mlp_out/kernel", "linear2.weight", "layer F D -> D F"),
)
_BRANCHES = (("semantic", "rvq_first"), ("acoustic", "rvq_rest"))


def load_mimi(path: Path, config: schema.MimiConfig) -> dict[str, Any]:
    """Reads a Mimi file into the parameters of `codec.mimi.Mimi`, float32.

    Args:
      path: safetensors with the names of the released file, older ones, or those `moshi` saves.
      config: the sizes that the file must have.

    Raises:
      ValueError: naming the file and every missing, unexpected or misshapen tensor, tensors under two
        spellings, or codebooks that were never trained.
    """
    tensors = released_names(safetensors_io.read(path), place=str(path))
    table = mimi_rules(config) + flag_rules()
    flat = rules.from_upstream(tensors, table, sizes(config), place=str(path))
    for rule in flag_rules():
        flags = flat.pop(rule.leaves[0])
        if not flags.all():
            levels = np.flatnonzero(flags == 0).tolist()
            raise ValueError(
                f"{path}: {rule.name}: expected 1, got 0 at levels {levels}: "
                "these codebooks were never trained; use a finished checkpoint"
            )
    # in C order, since callers hand them to jit again and again
    return tree.unflatten({name: np.require(x, requirements="C") for name, x in flat.items()})


def open_codec(path: Path, config: schema.MimiConfig) -> flax_codec.FlaxCodec:
    """Opens a Mimi file for batches, accelerators and all sizes; errors as `load_mimi`.

    `codecs.open_codec` opens one for a conversation.
    """
    return flax_codec.FlaxCodec(load_mimi(path, config), config)


def sizes(config: schema.MimiConfig) -> dict[str, int]:
    """Returns {axis name in these rules: size}."""
    stages = range(len(config.ratios) + 1)
    return {
        "layer": config.layers,
        "D": config.latent,
        "D_out": config.latent,
        "N": config.heads,
        "H": config.latent // config.heads,
        "F": config.hidden,
        "C": config.codes,
        "W": config.code_width,
        "semantic_level": quantizer.SEMANTIC_LEVELS,
        "acoustic_level": config.stored_codebooks - quantizer.SEMANTIC_LEVELS,
        **{f"w{i}": config.filters * 2**i for i in stages},  # widths at each rate, widest last
        **{f"half{i}": config.filters * 2**i // 2 for i in stages},
        **{f"taps{i}": 2 * ratio for i, ratio in enumerate(reversed(config.ratios))},
    }


def mimi_rules(config: schema.MimiConfig) -> list[rules.Rule]:
    """Returns the table of all parameters."""
    stages = range(len(config.ratios))
    table = rules.table(
        [
            *(row for i in stages for row in _encoder_stage(i)),
            *(row for i in stages for row in _decoder_stage(len(stages) - 1 - i, i)),
            *_ends(len(stages)),
            ("downsample/kernel", "downsample.conv.conv.conv.weight", "4 D D_out -> D_out D 4"),
            ("upsample/kernel", "upsample.convtr.convtr.convtr.weight", "4 D -> D 1 4"),
        ]
    )
    for part in ("encoder_transformer", "decoder_transformer"):
        layer = f"{part}.transformer.layers.{{layer}}."
        table += rules.table(_LAYER, ours=f"{part}/blocks/", upstream=layer)
    for ours, upstream in _BRANCHES:
        book = f"vq.layers.{{{ours}_level}}._codebook."
        rows = [
            ("input/kernel", "input_proj.weight", "D W -> W D 1"),
            ("output/kernel", "output_proj.weight", "W D -> D W 1"),
            ("embedding_sum", f"{book}embedding_sum", f"{ours}_level C W"),
            ("cluster_usage", f"{book}cluster_usage", f"{ours}_level C"),
        ]
        table += rules.table(rows, ours=f"quantizer/{ours}/", upstream=f"quantizer.{upstream}.")
    return table


def _ends(stages: int) -> list[Row]:
    """SEANet numbers its layers, activations included: 0, then 3 a stage, then the last."""
    last = 2 + 3 * stages
    return [
        *_conv("encoder/first", "encoder.model.0", "7", "1", "w0"),
        *_conv("encoder/last", f"encoder.model.{last}", "3", f"w{stages}", "D"),
        *_conv("decoder/first", "decoder.model.0", "7", "D", f"w{stages}"),
        *_conv("decoder/last", f"decoder.model.{last}", "3", "w0", "1"),
    ]


def _encoder_stage(i: int) -> list[Row]:
    ours, n = f"encoder/stages_{i}", 1 + 3 * i
    return [
        *_residual(f"{ours}/residual", f"encoder.model.{n}.block.", i),
        *_conv(f"{ours}/down", f"encoder.model.{n + 2}", f"taps{i}", f"w{i}", f"w{i + 1}"),
    ]


def _decoder_stage(i: int, stage: int) -> list[Row]:
    """The mirror image of the encoder's stage i; transposed convolutions store (inputs, outputs, taps)."""
    ours, n = f"decoder/stages_{stage}", 2 + 3 * stage
    name = f"decoder.model.{n}.convtr.convtr."
    return [
        (f"{ours}/up/kernel", f"{name}weight", f"taps{i} w{i + 1} w{i} -> w{i + 1} w{i} taps{i}"),
        (f"{ours}/up/bias", f"{name}bias", f"w{i}"),
        *_residual(f"{ours}/residual", f"decoder.model.{n + 1}.block.", i),
    ]


def _residual(ours: str, upstream: str, i: int) -> list[Row]:
    return [
        *_conv(f"{ours}/narrow", f"{upstream}1", "3", f"w{i}", f"half{i}"),
        (f"{ours}/wide/kernel", f"{upstream}3.conv.conv.weight", f"half{i} w{i} -> w{i} half{i} 1"),
        (f"{ours}/wide/bias", f"{upstream}3.conv.conv.bias", f"w{i}"),
    ]


def _conv(ours: str, upstream: str, taps: str, inputs: str, outputs: str) -> list[Row]:
    axes = f"{taps} {inputs} {outputs} -> {outputs} {inputs} {taps}"
    return [
        (f"{ours}/kernel", f"{upstream}.conv.conv.weight", axes),
        (f"{ours}/bias", f"{upstream}.conv.conv.bias", outputs),
    ]


def flag_rules() -> list[rules.Rule]:
    """Returns the table of what says that a codebook was trained."""
    flag = "quantizer.{0}.vq.layers.{{{1}_level}}._codebook._initialized"
    return rules.table(
        (f"quantizer/{ours}/trained", flag.format(upstream, ours), f"{ours}_level -> 1")
        for ours, upstream in _BRANCHES
    )


def released_names(tensors: Mapping[str, np.ndarray], *, place: str) -> rules.Tensors:
    """Returns the tensors under the names of the released file.

    Raises:
      ValueError: naming tensors that are there under two spellings.
    """
    renamed: rules.Tensors = {}
    twice = []
    for name, tensor in tensors.items():
        known = rules.renamed(name, _SPELLINGS)
        if known in renamed:
            twice.append(known)
        renamed[known] = tensor
    if twice:
        raise ValueError(
            f"{place}: expected each tensor once, got two spellings of {messages.names(sorted(twice))}"
        )
    return renamed
