"""Frozen weights into a run: every format, placed as the rules say, and everything wrong named.

Run as a script it rewrites the golden parameter table of the released model.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import as_written
import jax
import ml_dtypes
import numpy as np
import processes
import pytest
import toy

from mvjax import files, tree
from mvjax.config import schema
from mvjax.config import text as config_text
from mvjax.train import load, sharding
from mvjax.weights import big_vision, kyutai, placement, safetensors_io, siglip_names

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "moshika_vis_parameters.txt"
IO = Path("/proc/self/io")
MESHES = ({"fsdp": 4, "data": 2}, {"fsdp": 2, "tensor": 2, "data": 2}, {"data": 8})


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return toy.make_config(tmp_path_factory.mktemp("frozen"))


def with_frozen(config, **fields):
    return dataclasses.replace(config, frozen=dataclasses.replace(config.frozen, **fields))


def mesh_of(**sizes):
    return sharding.make_mesh(schema.MeshConfig(**sizes))


def assert_equal(found, expected):
    found, expected = tree.flatten(found), tree.flatten(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        assert found[path].dtype == leaf.dtype, path
        np.testing.assert_array_equal(np.asarray(found[path]), leaf, err_msg=path)


def frozen_part(config, stored):
    flat = tree.flatten(stored)
    return {path: flat[path] for path in tree.flatten(load.shapes(config).frozen)}


@pytest.mark.parametrize("sizes", MESHES)
def test_the_frozen_tree_is_in_its_place_and_each_value_was_read_once(config, sizes, monkeypatch):
    read = []
    inner = safetensors_io.SafetensorsTensor.__getitem__

    def counted(self, index):
        part = inner(self, index)
        read.append(part.size)
        return part

    expected = frozen_part(config, toy.stored(config))
    monkeypatch.setattr(safetensors_io.SafetensorsTensor, "__getitem__", counted)
    mesh = mesh_of(**sizes)
    placed = load.frozen(config, mesh)
    assert_equal(placed, tree.unflatten(expected))
    assert sum(read) == sum(
        leaf.size for path, leaf in expected.items() if not path.startswith("image/")
    )
    for path, spec in tree.flatten(sharding.shardings(placed, mesh)).items():
        assert tree.flatten(placed)[path].sharding == spec


@pytest.mark.skipif(not IO.exists(), reason="counts the bytes that Linux says were read")
def test_a_start_reads_each_file_once_and_maps_each_value_once(config, monkeypatch):
    def read_bytes():
        return int(IO.read_text().split("rchar: ")[1].split()[0])

    load.frozen(config, mesh_of(data=8))  # imports are done
    mapped, inner = [], safetensors_io.SafetensorsTensor.__getitem__
    monkeypatch.setattr(
        safetensors_io.SafetensorsTensor,
        "__getitem__",
        lambda self, index: mapped.append(part := inner(self, index)) or part,
    )
    moshi, siglip = (os.path.getsize(p) for p in (config.frozen.moshi, config.frozen.siglip))
    before = read_bytes()
    files = load.open_frozen(config)  # headers are read again, to open
    hashed = read_bytes() - before
    assert moshi + siglip <= hashed < 1.5 * (moshi + siglip) and not mapped
    before = read_bytes()
    frozen = load.frozen(config, mesh_of(data=8), files)
    assert (
        read_bytes() - before < moshi
    )  # the npz, with its directory for each array; Moshi is mapped
    values = [leaf.size for path, leaf in tree.flatten(frozen).items() if "image/" not in path]
    assert sum(part.size for part in mapped) == sum(values)


def test_shapes_are_computed_once(config, monkeypatch):
    first = load.shapes(config)
    monkeypatch.setattr(jax, "eval_shape", None)
    assert load.shapes(toy.with_train(config, seed=9)) is first


def test_trained_parameters_of_the_file_start_from_it_in_float32(config, tmp_path):
    moshi = kyutai.load_moshi(config.frozen.moshi, config.model)
    kyutai.save_moshi(tmp_path / "m.safetensors", moshi, config.model, dtype=ml_dtypes.bfloat16)
    model = dataclasses.replace(config.model, dtype="bfloat16")
    run = dataclasses.replace(
        with_frozen(config, moshi=str(tmp_path / "m.safetensors")), model=model
    )
    trained = (*run.train.trained, "backbone/text_head/.*")
    run = toy.with_train(run, trained=trained)
    params = load.weights(run, mesh_of(fsdp=2, tensor=2, data=2))
    head = params.adapters["backbone"]["text_head"]["kernel"]
    stored = moshi["backbone"]["text_head"]["kernel"].astype(ml_dtypes.bfloat16)
    assert head.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(head), stored.astype(np.float32))
    assert params.frozen["backbone"]["text_emb"]["embedding"].dtype == ml_dtypes.bfloat16
    assert params.frozen["image"]["encoder"]["embedding"]["kernel"].dtype == np.float32
    tree.assert_same_tree(params.adapters, load.shapes(run).adapters, place="adapters")


def test_hash_is_that_of_the_values_wherever_they_are(config, monkeypatch):
    monkeypatch.setattr(placement, "PART_BYTES", 3000)
    stored = tree.unflatten(frozen_part(config, toy.stored(config)))
    expected = load.tree_hash(stored)
    assert load.tree_hash(load.frozen(config, mesh_of(fsdp=4, data=2))) == expected
    stored["backbone"]["out_norm"]["scale"][3] += 1
    assert load.tree_hash(stored) != expected


def write_hf_siglip(config, folder):
    """The run's image encoder as Hugging Face would write it, in two files."""
    encoder = big_vision.load_siglip(config.frozen.siglip, config.model.siglip)
    table = siglip_names.siglip_rules(ours="", upstream="vision_tower.vision_model.")
    sizes = siglip_names.sizes(config.model.siglip)
    tensors = as_written.tensors(tree.flatten(encoder), table, sizes)
    where = {}
    for k, names in enumerate((sorted(tensors)[:9], sorted(tensors)[9:])):
        file = f"model-{k}.safetensors"
        safetensors_io.write(folder / file, {name: tensors[name] for name in names})
        where |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def test_the_image_encoder_may_be_npz_or_safetensors(config, tmp_path):
    expected = toy.stored(config)
    write_hf_siglip(config, tmp_path)
    shutil.copy(config.frozen.moshi, tmp_path / "model.safetensors")
    for location in (f"{config.frozen.siglip}:img", str(tmp_path)):
        run = with_frozen(config, siglip=location)
        assert_equal(toy.stored(run), expected)
        identity = load.open_frozen(run).identity["siglip"]
        assert identity["path"] == location and len(identity["sha256"]) == 64
    before = load.open_frozen(run).identity
    file = tmp_path / "model-1.safetensors"
    tensors = safetensors_io.read(file)
    tensors[sorted(tensors)[0]] += 1
    safetensors_io.write(file, tensors)
    with pytest.raises(ValueError, match=r"here(.|\n)*frozen\.siglip: expected SHA-256"):
        load.check_identity(before, load.open_frozen(run).identity, place="here")


def test_lora_is_part_of_the_run_and_of_its_identity(config, tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "text_linear.lora_A.weight": rng.standard_normal((2, 24)).astype("f"),
        "text_linear.lora_B.weight": rng.standard_normal((34, 2)).astype("f"),
    }
    safetensors_io.write(tmp_path / "lora.safetensors", tensors)
    run = with_frozen(config, moshi_lora=str(tmp_path), lora_scaling=2.0)
    plain, merged = toy.stored(config), toy.stored(run)
    changed = [path for path in plain if not np.array_equal(plain[path], merged[path])]
    assert changed == ["backbone/text_head/kernel"]
    with pytest.raises(
        ValueError, match=r"frozen\.moshi_lora: expected SHA-256 None.*got [0-9a-f]{64}"
    ):
        load.check_identity(
            load.open_frozen(config).identity, load.open_frozen(run).identity, place="x"
        )
    identity = load.open_frozen(run).identity
    (tmp_path / "config.json").write_text('{"lora_scaling": 4.0}')
    beside = load.open_frozen(with_frozen(config, moshi_lora=str(tmp_path))).identity
    with pytest.raises(ValueError, match=r"frozen\.lora_scaling: .* \(2\), got .* \(4\)"):
        load.check_identity(identity, beside, place="x")
    load.check_identity(
        {k: v for k, v in identity.items() if k != "lora_scaling"}, beside, place=""
    )


def test_a_file_of_the_hub_must_have_the_bytes_it_is_named_by(config, tmp_path):
    digest = files.file_hash(Path(config.frozen.moshi))
    blob = tmp_path / "blobs" / digest
    blob.parent.mkdir()
    shutil.copy(config.frozen.moshi, blob)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    run = with_frozen(config, moshi=str(link))
    assert load.open_frozen(run).identity["moshi"]["sha256"] == digest
    damaged = bytearray(blob.read_bytes())
    damaged[-1] ^= 1
    blob.write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"model\.safetensors: expected SHA-256 {digest}, as the"):
        load.open_frozen(run)


def flip(path):
    data = bytearray(path.read_bytes())
    tensor = safetensors_io.tensors(path)["text_emb.weight"]
    data[tensor.begin + 10 : tensor.begin + 14] = bytes(x ^ 0x11 for x in data[10:14])
    path.write_bytes(data)


def not_a_number(path):
    """As a fault before the file was written, or in one without checksums."""
    tensors = safetensors_io.read(path)
    tensors["text_emb.weight"][1, 2] = np.nan
    safetensors_io.write(path, tensors)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-4])


def change(path, **changes):
    tensors = safetensors_io.read(path)
    for name, value in changes.items():
        tensors[name.replace("__", ".")] = value
    safetensors_io.write(path, tensors)


def reshape(path):
    change(path, text_emb__weight=np.zeros((35, 25), np.float32))


def rename(path):
    tensors = safetensors_io.read(path)
    tensors["text_embedding.weight"] = tensors.pop("text_emb.weight")
    safetensors_io.write(path, tensors)


def as_int8(path):
    change(path, text_emb__weight=np.zeros((35, 24), np.int8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, r"not those that were written: \['text_emb\.weight'\]"),
        (not_a_number, r"\n  text_emb\.weight: expected numbers, got 1 NaN"),
        (
            truncate,
            r"expected [\d,]+ bytes, so these tensors are cut off: \['transformer\.layers\.",
        ),
        (reshape, r"\n  text_emb\.weight: expected \[35, 24\], got \[35, 25\]"),
        (rename, r"\n  text_emb\.weight: missing(.|\n)*\n  text_embedding\.weight: unexpected"),
        (as_int8, r"\n  text_emb\.weight_scb: missing, expected \[35\]"),
    ],
)
def test_damage_names_the_file_and_the_tensor(config, tmp_path, damage, message):
    path = tmp_path / "moshi.safetensors"
    shutil.copy(config.frozen.moshi, path)
    damage(path)
    run = with_frozen(config, moshi=str(path))
    with pytest.raises(ValueError, match=rf"{path}(.|\n)*{message}"):
        load.frozen(run, mesh_of(fsdp=4, data=2))


def test_a_pickle_is_refused(config, tmp_path):
    (tmp_path / "moshi.pt").touch()
    with pytest.raises(ValueError, match=r"moshi\.pt: expected safetensors or npz, got a pickle"):
        load.frozen(with_frozen(config, moshi=str(tmp_path / "moshi.pt")), mesh_of(data=8))


def parameter_table() -> str:
    run = config_text.load_experiment(ROOT / "experiments" / "moshika_vis.py")
    shapes = load.shapes(run)
    counts = "".join(f"{name} {count:,}\n" for name, count in load.counts(run).items())
    mesh = sharding.abstract_mesh(run.mesh)
    table = sharding.explain(tree.merge(*shapes), mesh, trained=shapes.adapters)
    return f"{counts}\n{table}\n"


def test_parameter_table_of_the_released_model():
    """A change here is a change of the model or of its sharding; then run this file as a script."""
    found = parameter_table()
    assert found == GOLDEN.read_text()
    for line in (
        "backbone 6,973,366,272",
        "depth transformer 714,362,880",
        "adapters 206,184,448",
        "SigLIP 413,327,088",
        "total 8,307,240,688",
    ):
        assert f"{line}\n" in found


PROCESS = """
from pathlib import Path
import toy
from mvjax import tree
from mvjax.config import schema
from mvjax.train import distributed, load, sharding
from mvjax.weights import safetensors_io
read, inner = [0], safetensors_io.SafetensorsTensor.__getitem__
def counted(self, index):
    part = inner(self, index)
    read[0] += part.size
    return part
safetensors_io.SafetensorsTensor.__getitem__ = counted
with distributed.session():
    config = toy.make_config(Path(%r))
    mesh = sharding.make_mesh(schema.MeshConfig(fsdp=2, data=1, tensor=2))
    files = load.open_frozen(config)
    params = load.weights(config, mesh, files)
    local = 0
    for path, leaf in tree.flatten(params.frozen).items():
        if not path.startswith("image/"):
            boxes = {str(shard.index): shard.data.size for shard in leaf.addressable_shards}
            local += sum(boxes.values())
    print("RESULT", read[0], local, files.identity["moshi"]["sha256"], load.tree_hash(params.frozen))
"""


@pytest.mark.slow
def test_each_of_two_processes_reads_what_its_devices_hold(config, tmp_path):
    moshi = Path(config.frozen.moshi)
    total = sum(tensor.size for tensor in safetensors_io.read(moshi).values())
    for out in processes.run(PROCESS % str(moshi.parent), tmp_path, count=2, devices=2):
        read, local, digest, frozen_hash = out.split("RESULT ")[1].split()
        assert read == local and 0.4 * total < int(read) < 0.65 * total, (read, local, total)
        assert digest == files.file_hash(moshi) and len(frozen_hash) == 64


if __name__ == "__main__":
    GOLDEN.write_text(parameter_table())
