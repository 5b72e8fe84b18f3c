"""big_vision's npz: every layout reads to the same tree, and everything wrong is named."""

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from mvjax import tree as tree_lib
from mvjax.config import schema
from mvjax.nn import siglip
from mvjax.weights import big_vision, positions

CONFIG = schema.SiglipConfig(width=20, layers=3, heads=2, hidden=36, patch=4, image_size=24)
BLOCKS = "Transformer/encoderblock"


@pytest.fixture(scope="module")
def flat() -> dict[str, np.ndarray]:
    """Random parameters whose values bfloat16 holds exactly."""
    pixels = jax.ShapeDtypeStruct((1, 24, 24, 3), jnp.float32)
    shapes = jax.eval_shape(siglip.Siglip(CONFIG).init, jax.random.key(0), pixels)["params"]
    rng = np.random.default_rng(0)
    return {
        path: rng.normal(size=leaf.shape).astype(ml_dtypes.bfloat16).astype(np.float32)
        for path, leaf in tree_lib.flatten(shapes).items()
    }


def _write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)
    return path


def _one_by_one(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = {name: a for name, a in flat.items() if not name.startswith(BLOCKS)}
    for name, stack in flat.items():
        if name.startswith(BLOCKS):
            arrays |= {name.replace(BLOCKS, f"{BLOCKS}_{i}"): a for i, a in enumerate(stack)}
    return arrays


def _assert_loads(path: Path | str, flat: dict[str, np.ndarray]) -> None:
    loaded = tree_lib.flatten(big_vision.load_siglip(path, CONFIG))
    assert loaded.keys() == flat.keys()
    for name, array in flat.items():
        assert loaded[name].dtype == np.float32, name
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)


def test_what_is_saved_is_loaded_and_named_as_upstream(tmp_path, flat):
    path = tmp_path / "tower"
    big_vision.save_siglip(path, tree_lib.unflatten(flat))
    with np.load(path, allow_pickle=False) as archive:
        assert set(archive.files) == {f"params/img/{name}" for name in flat}
    _assert_loads(path, flat)


@pytest.mark.parametrize("blocks", ["stacked", "one by one"])
@pytest.mark.parametrize("prefix", ["", "img/", "params/", "params/img/", "opt/target/img/"])
def test_every_layout_reads_to_the_same_tree(tmp_path, flat, prefix, blocks):
    arrays = flat if blocks == "stacked" else _one_by_one(flat)
    _assert_loads(_write(tmp_path / "a.npz", {prefix + n: a for n, a in arrays.items()}), flat)


def test_a_named_subtree_is_the_tower_and_the_rest_is_left_alone(tmp_path, flat):
    arrays = {f"params/vision/deep/{name}": a for name, a in flat.items()}
    arrays["params/other/kernel"] = np.zeros(3)
    path = _write(tmp_path / "a.npz", arrays)
    _assert_loads(f"{path}:vision/deep", flat)
    with pytest.raises(ValueError, match=r"a\.npz.*sub-tree 'img/'"):
        big_vision.load_siglip(f"{path}:img", CONFIG)


def test_parts_of_released_files_that_are_not_used_are_skipped_by_name(tmp_path, flat):
    extra = ("img/head/kernel", "img/MAPHead_0/probe", "llm/embedder/input_embedding", "t", "b")
    arrays = {f"params/img/{name}": a for name, a in flat.items()}
    arrays |= {f"params/{name}": np.zeros(2) for name in (*extra, "txt/Embed_0/embedding")}
    arrays["opt/0/count"] = np.zeros((), np.int32)
    path = _write(tmp_path / "a.npz", arrays)
    _assert_loads(path, flat)
    _assert_loads(f"{path}:img", flat)


def test_bfloat16_and_float16_become_float32(tmp_path, flat):
    brain = {name: a.astype(ml_dtypes.bfloat16) for name, a in flat.items()}
    path = _write(tmp_path / "a.npz", brain)
    with np.load(path, allow_pickle=False) as archive:
        assert archive["pos_embedding"].dtype == np.dtype("V2")
    _assert_loads(path, flat)
    half = {name: a.astype(np.float16) for name, a in flat.items()}
    rounded = {name: a.astype(np.float32) for name, a in half.items()}
    _assert_loads(_write(tmp_path / "b.npz", half), rounded)


def test_all_missing_unexpected_and_misshapen_names_are_listed(tmp_path, flat):
    arrays = dict(flat) | {"cls": np.zeros((1, 1, 20)), "embedding/bias": np.zeros(21)}
    arrays |= {"Transformer/encoder_norm/bias": np.zeros(20, np.int32)}
    del arrays["embedding/kernel"]
    del arrays[f"{BLOCKS}/LayerNorm_0/scale"]
    path = _write(tmp_path / "a.npz", arrays)
    with pytest.raises(ValueError) as error:
        big_vision.load_siglip(path, CONFIG)
    assert str(path) in str(error.value) and "5 parameters" in str(error.value)
    for line in (
        "embedding/kernel: missing",
        f"{BLOCKS}/LayerNorm_0/scale: missing",
        "cls: unexpected",
        "embedding/bias: expected [20], got [21]",
        "Transformer/encoder_norm/bias: expected floating point numbers, got int32",
    ):
        assert line in str(error.value)


def test_a_wrong_number_of_blocks_is_listed(tmp_path, flat):
    arrays = _one_by_one(flat)
    arrays = {name.replace("block_2/", "block_3/"): a for name, a in arrays.items()}
    with pytest.raises(ValueError, match=r"block_2/.*: missing(.|\n)*block_3/.*: unexpected"):
        big_vision.load_siglip(_write(tmp_path / "a.npz", arrays), CONFIG)


@pytest.mark.parametrize("side", [4, 8])
def test_positions_of_another_resolution_are_resampled_and_said_to_be(tmp_path, flat, side, caplog):
    table = np.random.default_rng(1).normal(size=(1, side * side, 20)).astype(np.float32)
    path = _write(tmp_path / "a.npz", dict(flat) | {"pos_embedding": table})
    _assert_loads(path, flat | {"pos_embedding": positions.resample(table[0], 36)[None]})
    (record,) = caplog.records
    assert f"from images of {4 * side} pixels" in record.message and str(path) in record.message
    assert "config's 24 (6 x 6)" in record.message


def test_positions_of_another_width_or_of_no_square_are_refused(tmp_path, flat):
    for shape in ((1, 64, 21), (1, 63, 20), (64, 20)):
        arrays = dict(flat) | {"pos_embedding": np.zeros(shape, np.float32)}
        with pytest.raises(ValueError, match=r"pos_embedding: expected \[1, 36, 20\], got "):
            big_vision.load_siglip(_write(tmp_path / "a.npz", arrays), CONFIG)


@pytest.mark.parametrize("blocks", ["stacked", "one by one"])
def test_leaves_are_read_in_part_and_shapes_without_reading(tmp_path, flat, blocks, monkeypatch):
    arrays = flat if blocks == "stacked" else _one_by_one(flat)
    path = _write(tmp_path / "a.npz", arrays)
    seen = []
    read = big_vision._values
    monkeypatch.setattr(big_vision, "_values", lambda a, key: seen.append(key) or read(a, key))
    leaves = big_vision.open_siglip(path, CONFIG)
    assert seen == [] and {n: leaf.shape for n, leaf in leaves.items()} == {
        n: a.shape for n, a in flat.items()
    }
    name = f"{BLOCKS}/MlpBlock_0/Dense_0/kernel"
    for columns in (slice(0, 12), slice(12, 36)):  # as two devices ask
        part = leaves[name][(slice(1, 3), slice(None), columns)]
        np.testing.assert_array_equal(part, flat[name][1:3, :, columns])
    assert len(seen) == (1 if blocks == "stacked" else 3)


def test_values_that_are_no_numbers_are_named(tmp_path, flat):
    arrays = _one_by_one(flat)
    name = f"{BLOCKS}_1/LayerNorm_0/bias"
    arrays[name] = np.full(20, np.nan, np.float32)
    with pytest.raises(ValueError, match=rf"a\.npz: {name}: holds NaN"):
        big_vision.load_siglip(_write(tmp_path / "a.npz", arrays), CONFIG)


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.999])
def test_a_truncated_file_is_named(tmp_path, flat, kept):
    path = _write(tmp_path / "a.npz", flat)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"a\.npz: must be a whole npz file"):
        big_vision.load_siglip(path, CONFIG)


def test_a_flipped_byte_is_noticed(tmp_path, flat):
    path = _write(tmp_path / "a.npz", flat)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.npz: must be a whole npz file"):
        big_vision.load_siglip(path, CONFIG)


def test_pickles_are_refused_and_missing_files_are_named(tmp_path, flat):
    arrays = dict(flat) | {"embedding/bias": np.array([{}], dtype=object)}
    with pytest.raises(ValueError, match=r"a\.npz: embedding/bias.*pickle"):
        big_vision.load_siglip(_write(tmp_path / "a.npz", arrays), CONFIG)
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        big_vision.load_siglip(tmp_path / "none.npz", CONFIG)
