"""kyuteye_mlx's own loader and model on quantized files that we write, beside our runtime on the same."""

import dataclasses
import json

import exported
import pytest
import test_kyuteye_mlx as plain
import upstream

from mvjax import gates
from mvjax.config import schema
from mvjax.data import images
from mvjax.export import agreement, runtime_configs, weight_files
from mvjax.weights import quantize

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

MLX, FRAMES = plain.MLX, 20
mx, nn = plain.mx, plain.nn
utils = pytest.importorskip("mlx.utils")
# All widths fill groups of 64, and the hidden ones are 11/4 of the widths: D=512 F=1408 d=256 f=704 E=64
WIDE = dataclasses.replace(
    upstream.CONFIG,
    backbone=schema.BackboneConfig(width=512, layers=2, heads=4, hidden=1408, context=20),
    depformer=schema.DepformerConfig(width=256, layers=1, heads=2, hidden=704),
    siglip=schema.SiglipConfig(width=64, layers=1, heads=2, hidden=40, patch=7, image_size=28),
    cross_attention=schema.CrossAttentionConfig(gate=gates.Conditional(hidden=64)),
)


@pytest.mark.parametrize("mode", ["q8", "q4"])
def test_quantized_streaming_steps(mode, tmp_path, monkeypatch, compare):
    plain.unrounded(monkeypatch)
    config = upstream.like("kyuteye_mlx", WIDE)
    params = upstream.params(config)
    # strict: every name and shape is what `nn.quantize` makes of upstream's model
    model, embedder = plain.build(config, params, tmp_path, monkeypatch, mode=mode)
    model.set_dtype(mx.float32)  # of activations, scales and biases: bfloat16 would hide errors
    embedder.set_dtype(mx.float32)
    user = upstream.user_codes(FRAMES)
    theirs = plain.converse(model, embedder(mx.array(upstream.image())), user)

    from mvjax.runtimes.mlx import model as mlx_model

    sizes = runtime_configs.mlx_config(config, mode)
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    pixels = images.normalize(upstream.image())[None]
    outs = agreement.talk(mlx_model.MlxModel(tmp_path), pixels, user)
    compare.same("text ids", [out.text_token for out in outs], theirs[0])
    compare("text logits", exported.stacked(outs, "text_logits"), theirs[2], 1e-4)
    compare("audio logits", exported.stacked(outs, "audio_logits"), theirs[3], 1e-4)


@pytest.mark.parametrize("mode", ["q8", "q4"])
def test_the_file_is_what_upstreams_quantize_saves(mode, tmp_path, monkeypatch, compare):
    config = upstream.like("kyuteye_mlx", WIDE)
    params = upstream.params(config)
    model, _ = plain.build(config, params, tmp_path, monkeypatch)
    model.set_dtype(mx.bfloat16)  # as its bfloat16 file
    scheme = quantize.SCHEMES[mode]
    nn.quantize(model, bits=scheme.bits, group_size=scheme.group)
    saved = dict(utils.tree_flatten(model.parameters()))
    saved = MLX.loading.remove_shared_weights(saved, config.backbone.layers)
    weight_files.save_exported(
        tmp_path / "ours.safetensors", params, config, "mlx", quantization=mode
    )
    ours, _ = MLX.loading.split_embedder_weights(mx.load(str(tmp_path / "ours.safetensors")))
    assert ours.keys() == saved.keys()
    differing = [
        name
        for name, tensor in saved.items()
        if tensor.dtype != ours[name].dtype or not mx.array_equal(tensor, ours[name])
    ]
    compare.same("tensors of the file", [name in differing for name in saved], [False] * len(saved))
