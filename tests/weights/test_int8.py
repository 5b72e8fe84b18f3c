"""Kyutai's int8 files: the values of bitsandbytes bit for bit, and everything missing named."""

import ml_dtypes
import numpy as np
import pytest
import toy

from mvjax import tree
from mvjax.weights import int8, kyutai, safetensors_io

CONFIG = toy.MODEL


def as_numpy(state):
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in state.items()}


def kernels(module, dequantize):
    """Our four attention and MLP kernels of backbone layer 1 of a `moshi` model."""
    layer = module.transformer.layers[1]
    w = {
        "attn/qkv": dequantize(layer.self_attn.in_projs[0]).T.reshape(24, 3, 4, 6),
        "attn/out": dequantize(layer.self_attn.out_projs[0]).T.reshape(4, 6, 24),
        "mlp/in": dequantize(layer.gating.linear_in).T.reshape(24, 2, 66),
        "mlp/out": dequantize(layer.gating.linear_out).T,
    }
    return {f"backbone/blocks/{path}/kernel": value for path, value in w.items()}


@pytest.fixture(scope="module")
def quantized():
    """The toy Moshi with every linear layer replaced by the `moshi` package's int8 one."""
    pytest.importorskip("bitsandbytes")
    torch = pytest.importorskip("torch")
    quantize = pytest.importorskip("moshi.utils.quantize")
    twin = pytest.importorskip("moshi_twin").build(toy.params(), CONFIG)
    with torch.no_grad():
        quantize.replace_linear_with_qlinear(twin)
    return twin


@pytest.mark.parity
def test_every_value_is_that_of_moshis_own_modules(tmp_path, quantized):
    functional = pytest.importorskip("bitsandbytes.functional")

    def dequantize(linear):
        return functional.int8_vectorwise_dequant(linear.weight, linear.weight_scb).numpy()

    state = as_numpy(quantized.state_dict())
    assert sum(array.dtype == np.int8 for array in state.values()) == sum(
        name.endswith("weight_scb") for name in state
    )
    safetensors_io.write(tmp_path / "q8.safetensors", state)
    found = tree.flatten(kyutai.load_moshi(tmp_path / "q8.safetensors", CONFIG))
    exact = tree.flatten(toy.params())
    for path, expected in kernels(quantized, dequantize).items():
        np.testing.assert_array_equal(found[path][1], expected, err_msg=path)
        assert 0 < np.abs(found[path][1] - exact[path][1]).max() < 0.01
    step = quantized.depformer.layers[1].self_attn.in_projs[2]
    np.testing.assert_array_equal(
        found["depformer/blocks/attn/qkv/kernel"][1, 2], dequantize(step).T.reshape(16, 3, 2, 8)
    )
    np.testing.assert_array_equal(
        found["backbone/text_head/kernel"], dequantize(quantized.text_linear).T
    )
    kept = kyutai.open_moshi(tmp_path / "q8.safetensors", CONFIG, dtype=None)
    assert kept["backbone/text_head/kernel"].dtype == ml_dtypes.bfloat16
    assert kept["backbone/text_emb/embedding"].dtype == np.float32


@pytest.mark.parity
def test_parts_and_fused_names_give_the_same(tmp_path, quantized):
    state = as_numpy(quantized.state_dict())
    parent = "depformer.layers.0.self_attn."
    for suffix in ("", "_scb"):
        steps = [state.pop(f"{parent}in_projs.{s}.weight{suffix}") for s in range(3)]
        state[f"{parent}in_proj_weight{suffix}"] = np.concatenate(steps)
    safetensors_io.write(tmp_path / "fused.safetensors", state)
    safetensors_io.write(tmp_path / "split.safetensors", as_numpy(quantized.state_dict()))
    fused = kyutai.open_moshi(tmp_path / "fused.safetensors", CONFIG)
    split = kyutai.open_moshi(tmp_path / "split.safetensors", CONFIG)
    path = "depformer/blocks/attn/qkv/kernel"
    whole = fused[path][()]
    np.testing.assert_array_equal(whole, split[path][()])
    index = (slice(0, 2), slice(1, 3), slice(4, 9), slice(None), slice(1, 2))
    np.testing.assert_array_equal(split[path][index], whole[index])


def test_what_does_not_fit_together_is_named():
    q, s = np.ones((3, 4), np.int8), np.ones(3, np.float32)
    tensors = {
        "good.weight": q, "good.weight_scb": s,
        "bare.weight": q,
        "short.weight": q, "short.weight_scb": s[:2],
        "float.weight": s, "float.weight_scb": s,
        "alone.weight_scb": s,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"f: 4 int8 tensors") as error:
        int8.dequantized(tensors, place="f")
    for line in (
        "bare.weight_scb: missing, expected [3]",
        "short.weight_scb: expected [3], got [2]",
        "float.weight: expected int8 beside float.weight_scb, got float32",
        "alone.weight_scb: unexpected, there is no alone.weight",
    ):
        assert line in str(error.value)
