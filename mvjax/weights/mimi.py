"""Kyutai's Mimi file (`tokenizer-e351c8d8-checkpoint125.safetensors`); reference section 6.

Every stored codebook is read; the model uses the first `codebooks` of them. The flag `_initialized` of a
codebook is no parameter: it is checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mvjax import tree
from mvjax.codec import flax_codec, interface, quantizer, rusty
from mvjax.config import schema
from mvjax.weights import rules, safetensors_io

Params = dict[str, Any]

_SPELLINGS = (  # other spellings (older files, the `moshi` package's) -> that of the released file
    (r"(.*\._codebook\.)inited", r"\1_initialized"),
    (r"(.*\._codebook\.)cluster_size", r"\1cluster_usage"),
    (r"(.*\._codebook\.)(?:embed_avg|embed_sum)", r"\1embedding_sum"),
    (r"(.*\.self_attn\.)in_projs\.0\.weight", r"\1in_proj_weight"),
    (r"(.*\.self_attn\.)out_projs\.0\.weight", r"\1out_proj.weight"),
)
_BRANCHES = (("semantic", "rvq_first"), ("acoustic", "rvq_rest"))


def load_mimi(path: Path, config: schema.MimiConfig) -> Params:
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


def open_codec(
    path: Path, config: schema.MimiConfig, *, backend: Literal["flax", "rusty"] = "flax"
) -> interface.Codec:
    """Opens a Mimi file as a codec.

    Args:
      path: as `load_mimi`.
      config: the sizes that the file must have.
      backend: "flax" for batches, accelerators and every size; "rusty" for serving on a CPU.

    Raises:
      ValueError: as `load_mimi`, or for sizes that the backend does not have.
      ModuleNotFoundError: if the backend's package is not installed, with the remedy.
    """
    if backend == "rusty":
        return rusty.RustyCodec(path, config)
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
    table = [
        *_encoder_rules(len(config.ratios)),
        *_decoder_rules(len(config.ratios)),
        *_transformer_rules("encoder_transformer"),
        *_transformer_rules("decoder_transformer"),
        ("downsample/kernel", "downsample.conv.conv.conv.weight", "4 D D_out -> D_out D 4"),
        ("upsample/kernel", "upsample.convtr.convtr.convtr.weight", "4 D -> D 1 4"),
    ]
    for ours, upstream in _BRANCHES:
        book = f"quantizer.{upstream}.vq.layers.{{{ours}_level}}._codebook."
        table += [
            (f"quantizer/{ours}/input/kernel", f"quantizer.{upstream}.input_proj.weight", "D W -> W D 1"),
            (f"quantizer/{ours}/output/kernel", f"quantizer.{upstream}.output_proj.weight", "W D -> D W 1"),
            (f"quantizer/{ours}/embedding_sum", f"{book}embedding_sum", f"{ours}_level C W"),
            (f"quantizer/{ours}/cluster_usage", f"{book}cluster_usage", f"{ours}_level C"),
        ]  # fmt: skip
    return [rules.Rule(*row) for row in table]


def _encoder_rules(stages: int) -> list[tuple[str, str, str]]:
    """SEANet numbers its layers, activations included: 0, then 3 a stage, then the last."""
    table = _conv("encoder/first", "encoder.model.0.conv.conv.", ("7", "1", "w0"))
    for i in range(stages):
        ours, n = f"encoder/stages_{i}", 1 + 3 * i
        table += _residual(f"{ours}/residual", f"encoder.model.{n}.block.", i)
        name = f"encoder.model.{n + 2}.conv.conv."
        table += _conv(f"{ours}/down", name, (f"taps{i}", f"w{i}", f"w{i + 1}"))
    name = f"encoder.model.{2 + 3 * stages}.conv.conv."
    return table + _conv("encoder/last", name, ("3", f"w{stages}", "D"))


def _decoder_rules(stages: int) -> list[tuple[str, str, str]]:
    """The encoder's mirror image; transposed convolutions store (inputs, outputs, taps)."""
    table = _conv("decoder/first", "decoder.model.0.conv.conv.", ("7", "D", f"w{stages}"))
    for stage in range(stages):
        i = stages - 1 - stage  # the encoder's stage at this rate
        ours, n = f"decoder/stages_{stage}", 2 + 3 * stage
        name = f"decoder.model.{n}.convtr.convtr."
        axes = f"taps{i} w{i + 1} w{i} -> w{i + 1} w{i} taps{i}"
        table += [(f"{ours}/up/kernel", f"{name}weight", axes)]
        table += [(f"{ours}/up/bias", f"{name}bias", f"w{i}")]
        table += _residual(f"{ours}/residual", f"decoder.model.{n + 1}.block.", i)
    name = f"decoder.model.{2 + 3 * stages}.conv.conv."
    return table + _conv("decoder/last", name, ("3", "w0", "1"))


def _residual(ours: str, upstream: str, i: int) -> list[tuple[str, str, str]]:
    return [
        *_conv(f"{ours}/narrow", f"{upstream}1.conv.conv.", ("3", f"w{i}", f"half{i}")),
        (f"{ours}/wide/kernel", f"{upstream}3.conv.conv.weight", f"half{i} w{i} -> w{i} half{i} 1"),
        (f"{ours}/wide/bias", f"{upstream}3.conv.conv.bias", f"w{i}"),
    ]


def _conv(ours: str, upstream: str, axes: tuple[str, str, str]) -> list[tuple[str, str, str]]:
    taps, inputs, outputs = axes
    layout = f"{taps} {inputs} {outputs} -> {outputs} {inputs} {taps}"
    return [
        (f"{ours}/kernel", f"{upstream}weight", layout),
        (f"{ours}/bias", f"{upstream}bias", outputs),
    ]


def _transformer_rules(name: str) -> list[tuple[str, str, str]]:
    ours, upstream = f"{name}/blocks/", f"{name}.transformer.layers.{{layer}}."
    norms = [
        (f"{ours}{norm}/{leaf}", f"{upstream}{norm}.{suffix}", "layer D")
        for norm in ("norm1", "norm2")
        for leaf, suffix in (("scale", "weight"), ("bias", "bias"))
    ]
    return [
        *norms,
        (f"{ours}attn/qkv/kernel", f"{upstream}self_attn.in_proj_weight", "layer D 3 N H -> (3 N H) D"),
        (f"{ours}attn/out/kernel", f"{upstream}self_attn.out_proj.weight", "layer N H D -> D (N H)"),
        (f"{ours}scale1/scale", f"{upstream}layer_scale_1.scale", "layer D"),
        (f"{ours}scale2/scale", f"{upstream}layer_scale_2.scale", "layer D"),
        (f"{ours}mlp_in/kernel", f"{upstream}linear1.weight", "layer D F -> F D"),
        (f"{ours}mlp_out/kernel", f"{upstream}linear2.weight", "layer F D -> D F"),
    ]  # fmt: skip


def flag_rules() -> list[rules.Rule]:
    """Returns the table of what says that a codebook was trained."""
    return [
        rules.Rule(
            f"quantizer/{ours}/trained",
            f"quantizer.{upstream}.vq.layers.{{{ours}_level}}._codebook._initialized",
            f"{ours}_level -> 1",
        )
        for ours, upstream in _BRANCHES
    ]


def released_names(tensors: Mapping[str, np.ndarray], *, place: str) -> rules.Tensors:
    """Returns the tensors under the names of the released file.

    Raises:
      ValueError: naming tensors that are there under two spellings.
    """
    renamed: rules.Tensors = {}
    twice = []
    for name, tensor in tensors.items():
        known = name
        for pattern, replacement in _SPELLINGS:
            known = re.sub(f"^{pattern}$", replacement, known)
        if known in renamed:
            twice.append(known)
        renamed[known] = tensor
    if twice:
        raise ValueError(
            f"{place}: expected each tensor once, got two spellings of {sorted(twice)}"
        )
    return renamed
