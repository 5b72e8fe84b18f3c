"""Locations (paths, folders, packages, the hub's cache through its own client) and atomic writes."""

import json
import os
import sys

import families
import pytest

from mvjax import files
from mvjax.config import beside_moshi, schema

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_resolve(tmp_path):
    file = tmp_path / "x.npz"
    file.touch()
    assert files.resolve(str(file)) == file
    assert files.resolve("package:mvjax/files.py").name == "files.py"
    with pytest.raises(FileNotFoundError, match=r"y\.npz.*x\.npz"):
        files.resolve(str(tmp_path / "y.npz"))
    with pytest.raises(FileNotFoundError, match="no package 'nowhere'"):
        files.resolve("package:nowhere/x")
    with pytest.raises(ValueError, match="expected package:NAME/FILE"):
        files.resolve("package:mvjax")
    with pytest.raises(ValueError, match="expected a file"):
        files.resolve(tmp_path)


def test_a_folder_stands_for_the_first_known_file_in_it(tmp_path):
    names = ("model.safetensors.index.json", "model.safetensors")
    with pytest.raises(ValueError, match=r"one of \['model\.safetensors\.index.*holds nothing"):
        files.resolve(tmp_path, names=names)
    (tmp_path / "model.safetensors").touch()
    assert files.resolve(str(tmp_path), names=names).name == "model.safetensors"
    (tmp_path / "model.safetensors.index.json").touch()
    assert files.resolve(tmp_path, names=names).name == "model.safetensors.index.json"
    assert files.resolve(tmp_path / "model.safetensors", names=names).suffix == ".safetensors"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl"])
@pytest.mark.parametrize("place", ["{}", "hf://some/where/{}", "package:mvjax/{}"])
def test_pickles_are_refused(tmp_path, name, place):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"{name}: expected safetensors or npz, got a pickle"):
        files.resolve(place.format(tmp_path / name if place == "{}" else name))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An offline machine; returns what puts a file into the cache as the hub's client would have."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def put(name: str, text: str, *, repository: str = "kyutai/toy", revision: str = "main"):
        root = tmp_path / f"models--{repository.replace('/', '--')}"
        file = root / "snapshots" / COMMIT / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / revision).write_text(COMMIT)
        return file

    return put


def test_a_cached_file_of_the_hub(hub):
    file = hub("sub/model.safetensors", "x")
    assert files.resolve("hf://kyutai/toy/sub/model.safetensors") == file
    assert files.resolve(f"hf://kyutai/toy@{COMMIT}/sub/model.safetensors") == file
    hub("model.safetensors", "y", revision="v1.0")
    assert files.resolve("hf://kyutai/toy@v1.0/model.safetensors").read_text() == "y"
    assert files.resolve("hf://kyutai/toy@v1.0", names=files.WEIGHTS).read_text() == "y"


def test_a_repository_stands_for_its_index_with_all_files(hub):
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = hub("model.safetensors.index.json", json.dumps({"weight_map": shards}))
    hub("model-1.safetensors", "1")
    with pytest.raises(FileNotFoundError, match=r"index\.json names files.*\n  model-2\.saf"):
        files.resolve("hf://kyutai/toy", names=files.WEIGHTS)
    hub("model-2.safetensors", "2")
    assert files.resolve("hf://kyutai/toy", names=files.WEIGHTS) == index
    index.write_text("[]")
    with pytest.raises(ValueError, match='expected JSON with "weight_map"'):
        files.resolve("hf://kyutai/toy", names=files.WEIGHTS)


def test_what_is_not_cached_is_named_with_a_remedy(hub):
    hub("other.safetensors", "x")
    with pytest.raises(FileNotFoundError) as error:
        files.resolve("hf://kyutai/toy@main", names=files.WEIGHTS)
    message = str(error.value)
    assert message.startswith("hf://kyutai/toy@main: neither on the hub nor in its local cache")
    assert all(f"\n  {name}: " in message for name in files.WEIGHTS)
    assert "hf download kyutai/toy consolidated.safetensors --revision main" in message
    with pytest.raises(FileNotFoundError, match="hf://no/where/x.npz"):
        files.resolve("hf://no/where/x.npz")


@pytest.mark.parametrize("location", ["hf://kyutai", "hf://kyutai/toy", "hf:///x/y", "hf://a/b@/c"])
def test_locations_on_the_hub_that_say_too_little(location):
    with pytest.raises(ValueError, match=r"expected hf://OWNER/NAME\[@REVISION\]/FILE"):
        files.resolve(location)


def test_without_the_hubs_client_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"hf://a/b: needs .* pip install 'mvjax\[hub\]'"):
        files.resolve("hf://a/b/x.npz")
    run = schema.Config(frozen=schema.FrozenFiles("hf://a/b", "siglip"))
    assert beside_moshi.follow(run) == run  # shapes can be shown


def test_a_file_is_replaced_and_no_draft_is_left(tmp_path):
    path = tmp_path / "x.json"
    for content in (b"one", b"two"):
        files.write_atomic(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_if_the_new_one_cannot_be_written(tmp_path):
    path = tmp_path / "x.json"
    files.write_atomic(path, b"old")
    (tmp_path / f"x.json{files.DRAFT}").mkdir()  # as good as a disk that is full
    with pytest.raises(OSError):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def test_processes_that_share_a_file_have_drafts_of_their_own(tmp_path):
    path = tmp_path / "x.json"
    (tmp_path / f"x.json{files.DRAFT}").mkdir()  # another's
    files.write_atomic(path, b"mine", shared=True)
    assert path.read_bytes() == b"mine"
    (tmp_path / f"x.json.{os.getpid()}{files.DRAFT}").mkdir()
    with pytest.raises(OSError):
        files.write_atomic(path, b"again", shared=True)


def test_a_file_beside_a_location(tmp_path):
    (tmp_path / "model.safetensors").touch()
    for location in (tmp_path, tmp_path / "model.safetensors"):
        assert files.beside(str(location), "config.json") == str(tmp_path / "config.json")
    assert files.beside("hf://a/b", "c.json") == "hf://a/b/c.json"
    assert files.beside("hf://a/b@v1/sub/x.npz", "c.json") == "hf://a/b@v1/sub/c.json"
    assert files.beside("package:mvjax.digits/assets/x", "c") == "package:mvjax.digits/assets/c"
    assert files.beside("hf://a/b", "hf://d/e/f") == "hf://d/e/f"
    folders = [files.is_folder(x) for x in (str(tmp_path), "hf://a/b", "hf://a/b/c", "package:a/b")]
    assert folders == [True, True, False, False]


def test_a_file_is_absent_only_where_that_is_known(tmp_path, hub):
    assert files.find(str(tmp_path / "x")) is None
    assert files.find("package:mvjax/x") is None
    weights = hub("model.safetensors", "x")
    assert files.find("hf://kyutai/toy/model.safetensors") == weights
    with pytest.raises(FileNotFoundError, match=r"toy/config\.json: whether it exists is unknown"):
        files.find("hf://kyutai/toy/config.json")
    marker = (
        weights.parents[2] / ".no_exist" / COMMIT / "config.json"
    )  # as the hub's client leaves it
    marker.parent.mkdir(parents=True)
    marker.touch()
    assert files.find("hf://kyutai/toy/config.json") is None


def test_sizes_and_names_follow_from_a_repository(hub, caplog):
    run = schema.Config(frozen=schema.FrozenFiles("hf://kyutai/toy", "siglip"))
    assert beside_moshi.follow(run) == run
    assert "toy/config.json: whether it exists is unknown" in caplog.text
    with pytest.raises(FileNotFoundError, match="whether it exists is unknown"):
        beside_moshi.check(run.frozen.moshi, run.model)
    names = {"moshi_name": "moshi_7b.safetensors", "mimi_name": "mimi@125.safetensors"}
    hub("config.json", json.dumps(families.KYUTAI | names))
    hub(
        "moshi_lm_kwargs.json", json.dumps(families.LM_KWARGS | {"depformer_dim_feedforward": None})
    )
    followed = beside_moshi.follow(run)
    assert followed.model.backbone == families.MODEL.backbone
    assert followed.frozen == schema.FrozenFiles(
        "hf://kyutai/toy/moshi_7b.safetensors",
        "siglip",
        "hf://kyutai/toy/mimi@125.safetensors",
        f"hf://kyutai/toy/{families.TOKENIZER}",
    )
    assert beside_moshi.follow(followed) == followed
