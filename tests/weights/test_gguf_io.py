"""q8_0 GGUF files."""

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from mvjax.weights import gguf_io  # noqa: E402

Q8_0 = gguf.GGMLQuantizationType.Q8_0


def matrix(seed=0, rows=7, width=96):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, width)) * 10.0 ** rng.uniform(-4, 3, (rows, 1))
    w[1] = 0
    w[2, :32] = -2.5
    return w.astype(np.float32)


def tensors():
    rng = np.random.default_rng(1)
    shapes = {
        "norm": (1, 1, 5),
        "conv": (4, 3, 2, 2),
        "odd": (6, 20),
        "bias": (64,),
        "one": (1, 1, 1),
    }
    plain = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {"w": matrix(), **plain}


def test_matrices_of_whole_blocks_become_q8_0_and_the_rest_float32(tmp_path):
    path = tmp_path / "m.q8_0.gguf"
    gguf_io.write(path, tensors())
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert kinds == {"w": "Q8_0"} | dict.fromkeys(("norm", "conv", "odd", "bias", "one"), "F32")
    found = gguf_io.tensors(path)
    for name, tensor in tensors().items():
        assert found[name].shape == tensor.shape
        np.testing.assert_array_equal(
            found[name][()], gguf_io.q8_round_trip(tensor)[()], err_msg=name
        )
        if name != "w":
            np.testing.assert_array_equal(found[name][()], tensor)
    scale = np.abs(matrix()).reshape(7, 3, 32).max(axis=-1) / 127
    error = np.abs(found["w"][()] - matrix()).reshape(7, 3, 32).max(axis=-1)
    assert (error <= 0.6 * scale).all() and (error > 0.1 * scale)[3:].all()


def test_the_same_values_give_the_same_bytes(tmp_path):
    first, again = tmp_path / "1.gguf", tmp_path / "2.gguf"
    gguf_io.write(first, tensors())
    gguf_io.write(again, {name: t[()] for name, t in gguf_io.tensors(first).items()})
    assert first.read_bytes() == again.read_bytes()


def test_quantizing_is_ggmls_but_for_scales_that_vanish():
    w = matrix()
    np.testing.assert_array_equal(gguf_io.quantize(w), gguf.quants.quantize(w, Q8_0))
    w[3, :32] = 1e-7  # its scale is below the smallest float16
    packed = gguf_io.quantize(w)
    np.testing.assert_array_equal(packed[3, :34], np.zeros(34, np.uint8))
    np.testing.assert_array_equal(gguf_io.quantize(gguf.quants.dequantize(packed, Q8_0)), packed)
    w[3, 5] = 1e7
    with pytest.raises(ValueError, match="up to 8.3 million"):
        gguf_io.quantize(w)


def test_parts_are_read_without_the_rest(tmp_path):
    path = tmp_path / "m.gguf"
    gguf_io.write(path, tensors())
    found = gguf_io.tensors(path)
    whole = gguf_io.q8_round_trip(matrix())
    for part in (np.s_[2:5, 0:96], np.s_[0:7, 32:64], np.s_[1:3, 5:70], np.s_[6:7, 31:33]):
        np.testing.assert_array_equal(found["w"][part], whole[part])
    part = np.s_[1:3, 0:3, 1:2, 0:2]
    np.testing.assert_array_equal(found["conv"][part], tensors()["conv"][part])


def test_damaged_files_are_named_with_their_tensors(tmp_path):
    path = tmp_path / "m.gguf"
    gguf_io.write(path, tensors())
    assert gguf_io.verify(path) == 6
    content = bytearray(path.read_bytes())
    where = {t.name: int(t.data_offset) for t in gguf.GGUFReader(path).tensors}
    content[where["odd"] + 8] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.gguf: the bytes of these tensors .*\['odd'\]"):
        gguf_io.verify(path)
    path.write_bytes(content[: where["bias"] + 8])
    with pytest.raises(ValueError, match=r"m\.gguf: not a readable.*cut off: \['bias', 'one'\]"):
        gguf_io.tensors(path)
    for length in (0, 3, 100):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"m\.gguf: not a readable GGUF file"):
            gguf_io.tensors(path)


def test_an_unquantizable_tensor_is_named_and_nothing_is_left(tmp_path):
    path = tmp_path / "m.gguf"
    with pytest.raises(ValueError, match="w: q8_0: expected values up to"):
        gguf_io.write(path, {"w": np.full((2, 32), np.nan, np.float32)})
    assert list(tmp_path.iterdir()) == []
