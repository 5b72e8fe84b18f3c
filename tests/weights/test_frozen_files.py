"""Identity of the frozen files: one read gives their SHA-256 and compares their checksums."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from mvjax import files as files_lib
from mvjax.config import schema
from mvjax.weights import frozen_files, safetensors_io

IO = Path("/proc/self/io")


@pytest.fixture
def frozen(tmp_path):
    """Frozen files of a Moshi in two safetensors and an encoder in npz (any values)."""
    rng = np.random.default_rng(0)
    where = {}
    for k in (0, 1):
        tensors = {f"{k}.{n}": rng.standard_normal((2**9, 2**10)).astype("f") for n in "ab"}
        safetensors_io.write(tmp_path / f"m-{k}.safetensors", tensors)
        where |= {f'"{name}"': f'"m-{k}.safetensors"' for name in tensors}
    listed = ", ".join(f"{name}: {file}" for name, file in where.items())
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{listed}}}}}')
    np.savez(tmp_path / "siglip.npz", rng.standard_normal(2**18))
    return schema.FrozenFiles(str(tmp_path), str(tmp_path / "siglip.npz"), "", "")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_identity_is_the_hash_of_the_bytes(frozen, tmp_path):
    identity = frozen_files.identity(frozen)
    parts = [tmp_path / f"m-{k}.safetensors" for k in (0, 1)]
    assert identity == {
        "moshi": {"path": frozen.moshi, "sha256": files_lib.joint_hash(map(sha256, parts))},
        "siglip": {"path": frozen.siglip, "sha256": sha256(tmp_path / "siglip.npz")},
    }
    assert frozen_files.file_hash(parts[0]) == sha256(parts[0])
    safetensors_io.write(tmp_path / "empty.safetensors", {})
    assert frozen_files.file_hash(tmp_path / "empty.safetensors") == sha256(
        tmp_path / "empty.safetensors"
    )


@pytest.mark.skipif(not IO.exists(), reason="counts the bytes that Linux says were read")
def test_one_read_hashes_and_verifies(frozen, tmp_path):
    def read_bytes():
        return int(IO.read_text().split("rchar: ")[1].split()[0])

    size = sum(os.path.getsize(path) for path in tmp_path.glob("*m-*")) + os.path.getsize(
        tmp_path / "siglip.npz"
    )
    before = read_bytes()
    frozen_files.identity(frozen)
    assert size <= read_bytes() - before < 1.05 * size


def test_changed_bytes_are_named(frozen, tmp_path):
    path = tmp_path / "m-1.safetensors"
    content = bytearray(path.read_bytes())
    content[safetensors_io.tensors(path)["1.b"].begin + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"m-1\.safetensors: the bytes of .* \['1\.b'\]"):
        frozen_files.identity(frozen)
    path.write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"m-1\.safetensors: .*cut off: \['1\.b'\]"):
        frozen_files.identity(frozen)
