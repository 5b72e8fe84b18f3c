"""Safetensors files: one or several with an index, checksums, and every kind of damage named."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from mvjax.weights import lazy, safetensors_io

INDEX = "model.safetensors.index.json"


def write_sharded(folder, tensors, *, per_file=2):
    names = sorted(tensors)
    groups = [names[k : k + per_file] for k in range(0, len(names), per_file)]
    where = {}
    for k, group in enumerate(groups):
        file = f"model-{k + 1:05d}-of-{len(groups):05d}.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in group}, folder / file)
        where |= dict.fromkeys(group, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder / INDEX


def some():
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 5), "b": (), "c": (4,), "d": (2, 3, 4), "e": (7, 2)}
    return {name: rng.standard_normal(shape).astype("f") for name, shape in shapes.items()}


def test_safetensors_round_trip_of_any_memory_order(tmp_path):
    path = tmp_path / "sub" / "x.safetensors"
    tensors = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        "b": np.float32([[1.5]]).astype(ml_dtypes.bfloat16),
    }
    safetensors_io.write(path, tensors)
    back = safetensors_io.read(path)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        np.testing.assert_array_equal(back[name], tensor)
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_truncated_files_name_the_file_and_the_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors_io.write(path, {"a": np.zeros((2, 3), "f"), "b": np.zeros((50,), "f")})
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    with pytest.raises(ValueError, match=r"x\.safetensors.*cut off: \['b'\]"):
        safetensors_io.read(path)
    path.write_bytes(whole[:20])
    with pytest.raises(ValueError, match=r"x\.safetensors.*header is cut off"):
        safetensors_io.read(path)
    path.write_bytes(whole[:3])
    with pytest.raises(ValueError, match="before its header"):
        safetensors_io.read(path)
    path.write_bytes(whole[:10] + b"\xff\xfe" + whole[12:])
    with pytest.raises(ValueError, match="header is corrupt"):
        safetensors_io.read(path)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors_io.write(path, {"a": np.zeros((2, 3), "f")})
    (tmp_path / "x.safetensors.partial").mkdir()
    with pytest.raises(OSError, match=r"x\.safetensors"):
        safetensors_io.write(path, {"a": np.ones((2, 3), "f")})
    assert not safetensors_io.read(path)["a"].any()


def test_a_tensor_that_cannot_be_made_leaves_no_file(tmp_path):
    def broken(part):
        raise ValueError("damaged")

    tensor = lazy.Computed((2, 3), np.dtype(np.float32), broken)
    with pytest.raises(ValueError, match="damaged"):
        safetensors_io.write(tmp_path / "x.safetensors", {"a": tensor})
    assert list(tmp_path.iterdir()) == []


def test_parts_are_read_without_the_rest(tmp_path):
    path, tensors = tmp_path / "x.safetensors", some()
    safetensors_io.write(path, tensors)
    found = safetensors_io.tensors(path)
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in tensors.items()}
    index = (slice(1, 2), slice(0, 2), slice(2, 4))
    np.testing.assert_array_equal(found["d"][index], tensors["d"][index])
    np.testing.assert_array_equal(found["b"][()], tensors["b"])


def test_other_writers_and_readers_agree_on_every_dtype(tmp_path):
    names = (
        np.float64,
        np.float16,
        np.int64,
        np.int32,
        np.int16,
        np.int8,
        np.uint32,
        np.uint8,
        bool,
    )
    values = np.arange(6).reshape(2, 3)
    tensors = {np.dtype(d).name: values.astype(d) for d in names}
    tensors["bfloat16"] = values.astype(ml_dtypes.bfloat16)
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    safetensors_io.write(ours, tensors)
    safetensors.numpy.save_file(tensors, theirs)
    for back in (safetensors.numpy.load_file(ours), safetensors_io.read(theirs)):
        assert back.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert back[name].dtype == tensor.dtype
            np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_equal_tensors_give_equal_files(tmp_path):
    tensors = some()
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    safetensors_io.write(a, tensors)
    safetensors_io.write(b, dict(reversed(tensors.items())))
    assert a.read_bytes() == b.read_bytes()


def test_every_changed_byte_names_the_tensor_it_is_in(tmp_path):
    path, tensors = tmp_path / "x.safetensors", some()
    safetensors_io.write(path, tensors)
    assert safetensors_io.verify(path) == 5
    whole = path.read_bytes()
    for name, tensor in safetensors_io.tensors(path).items():
        for offset in (0, tensors[name].nbytes - 1):
            damaged = bytearray(whole)
            damaged[tensor.begin + offset] ^= 1
            path.write_bytes(damaged)
            for check in (safetensors_io.verify, safetensors_io.read):
                with pytest.raises(ValueError, match=rf"x\.safetensors: .*written: \['{name}'\]"):
                    check(path)


def test_a_file_without_checksums_is_read_and_counts_none(tmp_path):
    safetensors.numpy.save_file(some(), tmp_path / "x.safetensors")
    assert safetensors_io.verify(tmp_path / "x.safetensors") == 0
    assert safetensors_io.read(tmp_path / "x.safetensors").keys() == some().keys()


@pytest.mark.parametrize("old, new", [(b'"F32"', b'"Z32"'), (b"[3,5]", b"[5,5]"), (b"[0,", b"[8,")])
def test_a_header_that_cannot_be_right_names_the_file(tmp_path, old, new):
    path = tmp_path / "x.safetensors"
    safetensors_io.write(path, some())
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        safetensors_io.tensors(path)


def test_several_files_with_an_index(tmp_path):
    tensors = some()
    index = write_sharded(tmp_path, tensors)
    found = safetensors_io.tensors(index)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name][()], tensor)
    assert found["e"].file.name == "model-00003-of-00003.safetensors"
    assert [file.name for file in safetensors_io.files(index)] == sorted(
        file.name for file in tmp_path.glob("*.safetensors")
    )


def test_an_index_and_its_files_must_agree(tmp_path):
    index = write_sharded(tmp_path, some())
    plain = json.loads(index.read_text())
    where = dict(plain["weight_map"])
    where["new"] = where["a"]
    del where["d"]
    index.write_text(json.dumps({"weight_map": where}))
    with pytest.raises(ValueError, match="differ") as error:
        safetensors_io.tensors(index)
    assert "new: expected in model-00001-of-00003.safetensors" in str(error.value)
    assert "d: found in model-00002-of-00003.safetensors" in str(error.value)
    index.write_text(json.dumps(plain))
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00003"):
        safetensors_io.tensors(index)
    for text in ("[]", "{", '{"weight_map": {"a": "../a.safetensors"}}'):
        index.write_text(text)
        with pytest.raises(ValueError, match=r"index\.json: expected"):
            safetensors_io.tensors(index)
