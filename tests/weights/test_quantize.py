"""MLX's affine quantization in numpy, against MLX."""

import ml_dtypes
import numpy as np
import pytest

from mvjax.weights import quantize

MODES = pytest.mark.parametrize("mode", quantize.SCHEMES)
DTYPES = pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])


def weights(seed=0, *, dtype=ml_dtypes.bfloat16):
    """Rows of many sizes, with all that a fit could stumble over."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((203, 192)) * 10.0 ** rng.uniform(-3, 2, (203, 1))
    w[::2] += rng.standard_normal((102, 1))
    w[0] = 0
    w[1], w[2] = 3, -5
    w[3, ::2], w[3, 1::2] = -1, 1
    w[4] = 0
    w[4, 3] = 1e-3
    w[5] = np.abs(w[5])
    w[6] = -np.abs(w[6])
    return w.astype(dtype)


def in_mlx(w):
    mx = pytest.importorskip("mlx.core")
    array = mx.array(w.astype(np.float32))
    return array.astype(mx.bfloat16) if w.dtype != np.float32 else array


def as_float32(array):
    import mlx.core as mx

    return np.array(array.astype(mx.float32))


@pytest.mark.parity
@MODES
@DTYPES
def test_quantize_is_mlxs_bit_for_bit(mode, dtype):
    mx = pytest.importorskip("mlx.core")
    scheme, w = quantize.SCHEMES[mode], weights(dtype=dtype)
    codes, scales, biases = mx.quantize(in_mlx(w), group_size=scheme.group, bits=scheme.bits)
    found = quantize.quantize(w, scheme)
    assert found.weight.dtype == np.uint32
    assert found.scales.dtype == found.biases.dtype == dtype
    np.testing.assert_array_equal(found.weight, np.array(codes))
    np.testing.assert_array_equal(found.scales.astype(np.float32), as_float32(scales))
    np.testing.assert_array_equal(found.biases.astype(np.float32), as_float32(biases))


@pytest.mark.parity
@MODES
def test_dequantize_is_mlxs_bit_for_bit_in_both_dtypes(mode):
    mx = pytest.importorskip("mlx.core")
    scheme = quantize.SCHEMES[mode]
    how = {"group_size": scheme.group, "bits": scheme.bits}
    packed = quantize.quantize(weights(), scheme)
    codes, scales, biases = mx.quantize(in_mlx(weights()), **how)
    own = mx.dequantize(codes, scales, biases, **how)
    found = quantize.dequantize(packed, scheme)
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), as_float32(own))
    wide = mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), **how)
    found = quantize.dequantize(packed, scheme, dtype=np.float32)
    np.testing.assert_array_equal(found, np.array(wide))


@MODES
def test_an_element_is_at_most_two_steps_off(mode):
    scheme, w = quantize.SCHEMES[mode], weights()
    packed = quantize.quantize(w, scheme)
    error = np.abs(quantize.dequantize(packed, scheme, dtype=np.float32) - w.astype(np.float32))
    step = np.repeat(np.abs(packed.scales.astype(np.float32)), scheme.group, axis=1)
    assert (error <= 2 * step).all()  # half a code, and the rounding of the scale
    assert error.max() > 0


@MODES
def test_a_part_of_a_packed_weight_is_that_part(mode):
    scheme = quantize.SCHEMES[mode]
    parts = quantize.quantize(weights(), scheme)
    packed = quantize.dequantized(parts, scheme, np.dtype(np.float32))
    whole = quantize.dequantize(parts, scheme, dtype=np.float32)
    assert packed.shape == whole.shape == (203, 192)
    np.testing.assert_array_equal(packed[()], whole)
    for part in (np.s_[5:9, 0:192], np.s_[0:203, 64:128], np.s_[200:203, 3:70], np.s_[4:5, 5:6]):
        np.testing.assert_array_equal(packed[part], whole[part])


def test_the_shapes_tell_the_scheme():
    codes, scales = np.zeros((5, 24), np.uint32), np.zeros((5, 3), np.float32)
    packed = quantize.AffineWeight(codes, scales, scales)
    found = quantize.scheme_of(packed, inputs=96)
    assert found == quantize.AffineScheme(bits=8, group=32)
    found = quantize.scheme_of(packed, inputs=192)
    assert found == quantize.AffineScheme(bits=4, group=64)
    for inputs, biases in ((100, scales), (256, scales), (96, scales[:4]), (96, scales[:, :2])):
        packed = quantize.AffineWeight(codes, scales, biases)
        assert quantize.scheme_of(packed, inputs=inputs) is None


def test_inputs_that_do_not_fill_groups_are_refused():
    with pytest.raises(ValueError, match="whole groups of 64, got 100"):
        quantize.quantize(np.zeros((3, 100), np.float32), quantize.SCHEMES["q8"])
