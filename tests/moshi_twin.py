"""The toy model as PyPI `moshi` modules with the same weights; import it through importorskip."""

import numpy as np
import torch
from moshi.models import lm

from mvjax.config import schema


def build(params, config: schema.ModelConfig) -> lm.LMModel:
    """Returns base Moshi; every weight of ours must have its place, and the other way round."""
    b, d = config.backbone, config.depformer
    twin = lm.LMModel(
        delays=list(config.delays),
        n_q=config.codebooks - 1,
        dep_q=config.codebooks_out,
        card=config.audio_vocab,
        text_card=config.text_vocab,
        dim=b.width,
        num_heads=b.heads,
        num_layers=b.layers,
        hidden_scale=4.125,
        norm="rms_norm_f32",
        gating="silu",
        positional_embedding="rope",
        max_period=b.rope_base,
        context=b.context,
        causal=True,
        depformer_dim=d.width,
        depformer_num_heads=d.heads,
        depformer_num_layers=d.layers,
        depformer_multi_linear=True,
        depformer_weights_per_step=True,
        depformer_pos_emb="none",
    )
    state = {name: torch.tensor(np.asarray(x)) for name, x in _state(params).items()}
    twin.load_state_dict(state, strict=True)
    return twin.eval()


def _state(params) -> dict[str, np.ndarray]:
    backbone, depformer = params["backbone"], params["depformer"]
    state = {
        "text_emb.weight": backbone["text_emb"]["embedding"],
        "text_linear.weight": backbone["text_head"]["kernel"].T,
        "out_norm.alpha": backbone["out_norm"]["scale"][None, None],
        "depformer_text_emb.weight": depformer["text_emb"]["embedding"],
    }
    _number(state, "emb.{}.weight", backbone["audio_emb"]["embedding"])
    _number(state, "depformer_emb.{}.weight", depformer["audio_emb"]["embedding"])
    _number(state, "depformer_in.{}.weight", np.swapaxes(depformer["in"]["kernel"], 1, 2))
    _number(state, "linears.{}.weight", np.swapaxes(depformer["heads"]["kernel"], 1, 2))
    for layer in range(backbone["blocks"]["norm1"]["scale"].shape[0]):
        _layer(state, f"transformer.layers.{layer}", backbone["blocks"], layer, steps=False)
    for layer in range(depformer["blocks"]["norm1"]["scale"].shape[0]):
        _layer(state, f"depformer.layers.{layer}", depformer["blocks"], layer, steps=True)
    return state


def _number(state, name: str, stacked) -> None:
    for index, x in enumerate(stacked):
        state[name.format(index)] = x


def _layer(state, prefix: str, blocks, layer: int, *, steps: bool) -> None:
    """Adds one layer; with `steps` every kernel has a step axis, in the backbone there is none."""
    for norm in ("norm1", "norm2"):
        state[f"{prefix}.{norm}.alpha"] = blocks[norm]["scale"][layer][None, None]

    def kernels(module: str, child: str):
        x = np.asarray(blocks[module][child]["kernel"][layer])
        return x if steps else x[None]

    for step, x in enumerate(kernels("attn", "qkv")):
        state[f"{prefix}.self_attn.in_projs.{step}.weight"] = x.reshape(x.shape[0], -1).T
    for step, x in enumerate(kernels("attn", "out")):
        state[f"{prefix}.self_attn.out_projs.{step}.weight"] = x.reshape(-1, x.shape[-1]).T
    for step, x in enumerate(kernels("mlp", "in")):
        name = f"{prefix}.gating.{step}" if steps else f"{prefix}.gating"
        state[f"{name}.linear_in.weight"] = x.reshape(x.shape[0], -1).T
    for step, x in enumerate(kernels("mlp", "out")):
        name = f"{prefix}.gating.{step}" if steps else f"{prefix}.gating"
        state[f"{name}.linear_out.weight"] = x.T
