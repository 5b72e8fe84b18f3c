"""Tiny random checkpoints of the Moshi family, each with the file names and the config of its publisher.

Sources: kyutai-labs/moshi, `configs/` and `moshi/models/loaders.py`; nu-dialogue/moshi-finetune;
NVIDIA/personaplex.
"""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import toy

from mvjax import tree
from mvjax.config import schema
from mvjax.weights import big_vision, kyutai, rules

MODEL = toy.EXPORTED_17
CODEC, TOKENIZER = "tokenizer-e351c8d8-checkpoint125.safetensors", "tokenizer_spm_32k_3.model"
# LMModel's keyword arguments for MODEL, in the order of `loaders._lm_kwargs`
LM_KWARGS = {
    "dim": 24,
    "text_card": 37,
    "existing_text_padding_id": 3,
    "n_q": 16,
    "dep_q": 8,
    "card": 13,
    "num_heads": 2,
    "num_layers": 3,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": 5,
    "max_period": 10000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 16,
    "depformer_dim_feedforward": 66,
    "depformer_num_heads": 4,
    "depformer_num_layers": 2,
    "depformer_causal": True,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": 8,
    "depformer_max_period": 10000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
}
# as Kyutai's repositories are written today
KYUTAI = {
    **{k: v for k, v in LM_KWARGS.items() if k != "depformer_causal"},
    "depformer_dim_feedforward": None,
    "conditioners": {},
    "cross_attention": False,
    "model_id": {"sig": "0123abcd", "epoch": 1},
    "lm_gen_config": {"temp": 0.8, "temp_text": 0.7, "top_k": 250, "top_k_text": 25},
    "model_type": "moshi",
    "moshi_name": "model.safetensors",
    "mimi_name": CODEC,
    "tokenizer_name": TOKENIZER,
}
PERSONAPLEX = {"model_type": "personaplex", "version": "7b-v1"}
_DESCRIPTION = {
    "type": "lut",
    "lut": {"n_bins": 31, "dim": 16, "tokenizer": "noop", "possible_values": ["bad", "good"]},
}
# {name: config.json} of what is no dialogue model
REFUSED = {
    "hibiki-2b": {
        **KYUTAI,
        "model_type": "hibiki",
        "max_period": 100000.0,
        "conditioners": {"description": _DESCRIPTION},
        "fuser": {"sum": ["description"]},
        "tokenizer_name": "tokenizer_spm_48k_multi6_2.model",
        "mimi_name": "mimi-pytorch-e351c8d8@125.safetensors",
    },
    "hibiki-zero-3b": {
        **KYUTAI,
        "model_type": "hibiki",
        "kv_repeat": 2,
        "positional_embedding": "rope_concat",
        "depformer_weights_per_step_schedule": [0, 1, 2, 3, 4, 5, 6, 6],
    },
    "tts-1.6b": {
        **KYUTAI,
        "model_type": "tts",
        "dep_q": 16,
        "demux_second_stream": True,
        "depformer_low_rank_embeddings": 8,
        "cross_attention": True,
        "conditioners": {"speaker_wavs": {"type": "tensor", "tensor": {"dim": 512}}},
        "tts_config": {"audio_delay": 1.28},
    },
    "stt-2.6b-en": {
        **KYUTAI,
        "model_type": "stt",
        "dep_q": 0,
        "delays": [0] * 17,
        "extra_heads_num_heads": 4,
        "stt_config": {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0},
    },
}


class Checkpoint(NamedTuple):
    """A folder as it is published, the parameters that are in it, and its whole depth transformer."""

    frozen: schema.FrozenFiles
    params: dict
    steps: int


def write(
    folder: Path,
    config: dict | None,
    *,
    name: str = "config.json",
    weights: str = "model.safetensors",
    steps: int = 8,
    codec: str = CODEC,
    tokenizer: str = TOKENIZER,
) -> Checkpoint:
    """Writes weights, codec, tokenizer (any bytes), an encoder, and the config unless it is None."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = dataclasses.replace(MODEL, codebooks_out=steps)
    rng = np.random.default_rng(7)
    table = kyutai.vis_rules(whole)
    flat = {}
    for path, shape in rules.leaf_shapes(table, kyutai.sizes(whole)).items():
        center = 1.0 if path.endswith("scale") else 0.0
        flat[path] = (center + 0.2 * rng.standard_normal(shape)).astype(np.float32)
    params = tree.unflatten(flat)
    kyutai.save_moshi(folder / weights, params, whole)
    big_vision.save_siglip(folder / "siglip.npz", params["image"]["encoder"])
    (folder / codec).write_bytes(b"codec")
    (folder / tokenizer).write_bytes(b"tokenizer")
    if config is not None:
        (folder / name).write_text(json.dumps(config))
    frozen = schema.FrozenFiles(moshi=str(folder), siglip=str(folder / "siglip.npz"))
    return Checkpoint(frozen, params, steps)


def config(checkpoint: Checkpoint, model: schema.ModelConfig | None = None) -> schema.Config:
    """A run that says only what no Moshi file says, or all of `model`."""
    unsaid = schema.ModelConfig(
        siglip=MODEL.siglip, cross_attention=MODEL.cross_attention, dtype=MODEL.dtype
    )
    return schema.Config(frozen=checkpoint.frozen, model=model or unsaid)
