import hashlib
import itertools
import json
import os
import subprocess
import sys

import pytest

from mvjax import files
from mvjax.stores import objects, places, staging, work


def test_objects(url):
    assert objects.below(url) == {} and objects.stat(f"{url}/a") is None
    first = objects.write(f"{url}/a/b", b"one")
    assert objects.below(url) == {"a/b": first} and first.size == 3
    assert objects.stat(f"{url}/a") is None  # a folder
    second = objects.write(f"{url}/a/b", b"two!")
    assert second.size == 4 and second.tag != first.tag
    assert objects.read(f"{url}/a/b") == b"two!" and objects.read_range(f"{url}/a/b", 1, 3) == b"wo"
    objects.write(f"{url}0", b"beside")  # no object below it
    assert objects.below(url) == {"a/b": second}
    with pytest.raises(FileNotFoundError, match="a/c: no such object"):
        objects.read(f"{url}/a/c")
    objects.remove([f"{url}/a/b", f"{url}/a/c"])
    assert objects.below(url) == {}


def test_a_bucket_that_is_not_there_is_named(url):
    place = url.replace("bucket", "no-such-bucket")
    with pytest.raises(FileNotFoundError, match="no bucket no-such-bucket; check the name"):
        objects.below(place)


class Failing:
    """Stands for a file system that fails so many times, as a store does."""

    def __init__(self, error, times):
        self.error, self.left = error, times

    def cat_file(self, path):
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return b"content"


@pytest.fixture
def failing(monkeypatch):
    waits = []
    monkeypatch.setattr(objects.time, "sleep", waits.append)

    def fail(error, times):
        waits.clear()
        monkeypatch.setattr(objects, "_file_system", lambda scheme: Failing(error, times))
        return waits

    return fail


def test_tries_again_with_growing_waits(failing):
    waits = failing(OSError(5, "InternalError"), 5)
    assert objects.read("s3://b/x") == b"content"
    assert len(waits) == 5 and all(a < b for a, b in itertools.pairwise(waits))
    failing(OSError(5, "InternalError"), 99)
    with pytest.raises(
        OSError, match=r"s3://b/x: could not read it in 8 tries .* InternalError; check"
    ):
        objects.read("s3://b/x")
    assert len(waits) == len(objects.WAITS)


class NoCredentialsError(Exception):
    """As botocore names it."""


@pytest.mark.parametrize(
    ("location", "error", "remedy"),
    [
        ("s3://b/x", PermissionError("Access Denied"), "aws configure"),
        ("s3://b/x", NoCredentialsError("Unable to locate credentials"), "aws configure"),
        ("gs://b/x", type("HttpError", (OSError,), {"code": 403})("no"), "gcloud auth application"),
        ("gs://b/x", type("HttpError", (OSError,), {"code": "401"})("no"), "ask the owner of b"),
    ],
)
def test_no_right_is_told_at_once(failing, location, error, remedy):
    waits = failing(error, 99)
    with pytest.raises(
        PermissionError, match=f"{location}: expected the right to read it.*{remedy}"
    ):
        objects.read(location)
    assert not waits


def test_what_is_no_name(tmp_path):
    for bad in ("s3://", "gs:///x", "s3://b/../x", "s3://b//x", "s3://b/./x"):
        with pytest.raises(ValueError, match="expected gs://BUCKET/NAME or s3://BUCKET/NAME"):
            places.parts(bad)
    assert places.parts("gs://b/") == ("gs", "b", "") and places.parts("s3://b/c/d/")[2] == "c/d"


def test_paths_stand_for_locations(cache):
    for location in ("s3://b", "gs://a.b/c/d e"):
        for path in (files.local(location), files.output(location)):
            assert places.url(path) == location
            assert places.named(f"{path}/x: no\n({path})") == f"{location}/x: no\n({location})"
    assert places.url(cache / "staged") is None and places.url(cache / "held" / "s3" / "b") is None
    assert files.output("~") == files.local("~") and places.url(files.output("~")) is None


def test_without_the_client_the_extra_is_named(monkeypatch):
    objects._file_system.cache_clear()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs s3fs: pip install 'mvjax\[s3\]'"):
        objects.read("s3://b/x")
    objects._file_system.cache_clear()


def test_a_copy_is_fetched_once_and_verified(url, fetched):
    objects.write(f"{url}/x", b"one")
    path, one = files.local(f"{url}/x"), hashlib.sha256(b"one").hexdigest()
    for wanted in (None, None, one, one):
        assert staging.here(path, sha256=wanted) == path and path.read_bytes() == b"one"
    assert len(fetched) == 2  # the first copy's SHA-256 was not asked for
    with pytest.raises(ValueError, match=f"{url}/x: expected SHA-256 {'0' * 64}, got {one}"):
        staging.here(path, sha256="0" * 64)
    objects.write(f"{url}/x", b"two")
    assert staging.here(path).read_bytes() == b"two"
    path.write_bytes(b"tampered")
    assert staging.here(path).read_bytes() == b"two"
    objects.remove([f"{url}/x"])
    assert not staging.here(path).exists()
    assert not list(path.parent.iterdir())


def test_the_cache_is_bounded_and_what_is_used_stays(s3, cache, monkeypatch):
    for name in "abcd":
        objects.write(f"{s3}/{name}/x", bytes(400_000))
    monkeypatch.setenv(staging.LIMIT, "0.001")
    paths = {name: files.local(f"{s3}/{name}/x") for name in "abcd"}
    program = "import sys; from pathlib import Path; from mvjax.stores import staging\n"
    program += "staging.here(Path(sys.argv[1])); print('here', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program, paths["a"]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "here\n"
        staging.here(paths["b"])
        monkeypatch.setattr(staging, "_held", set())  # as if this process had ended
        staging.here(paths["c"])
        assert [name for name in "abcd" if paths[name].exists()] == ["a", "c"]  # b was dropped
        with pytest.raises(
            OSError, match="expected room for its 400,000 bytes in .* raise MVJAX_CACHE"
        ):
            staging.here(paths["d"])
        other.communicate("\n")
    assert staging.here(paths["d"]).exists() and not paths["a"].exists()


def test_a_folder_is_pulled_and_pushed(url):
    objects.write(f"{url}/run/a", b"a")
    objects.write(f"{url}/run/sub/b", b"b")
    folder = files.output(f"{url}/run")
    work.pull(folder, lambda name: name != "a")
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == ["b"]
    work.pull(folder)
    before = objects.below(f"{url}/run")
    (folder / "new").write_text("new")
    (folder / "sub/b").unlink()
    (folder / "x.part").write_text("a draft")
    work.push(folder)
    after = objects.below(f"{url}/run")
    assert after.keys() == {"a", "new"} and after["a"] == before["a"]
    (folder / "stale").write_text("never pushed")
    objects.write(f"{url}/run/new", b"another process's")
    work.pull(folder)
    assert (folder / "new").read_text() == "another process's" and not (folder / "stale").exists()
    work.leave(folder)
    assert not folder.exists() and objects.below(f"{url}/run").keys() == {"a", "new"}


def test_the_marker_goes_first_and_comes_last(url, monkeypatch):
    folder = files.output(url)
    work.enter(folder)
    for name in ("data", "index.json"):
        (folder / name).write_text(f"{name} 1")
    work.push(folder, last=lambda name: name == "index.json")
    seen = []
    upload = objects.upload
    for name in ("data", "index.json"):
        (folder / name).write_text(f"{name} of another size")

    def noted(path, place):
        seen.append((path.name, sorted(objects.below(url))))
        return upload(path, place)

    monkeypatch.setattr(objects, "upload", noted)
    work.push(folder, last=lambda name: name == "index.json")
    assert seen == [("data", ["data"]), ("index.json", ["data"])]
    work.leave(folder)


def test_what_changes_is_pushed_at_the_interval_and_at_last(s3, monkeypatch):
    monkeypatch.setenv(work.INTERVAL, "0.05")
    folder, told = files.output(s3), []
    work.enter(folder)
    with work.pushed(folder, say=told.append):
        (folder / "metrics").write_text("1\n")
        for _ in range(100):
            if objects.below(s3):
                break
            __import__("time").sleep(0.05)
        assert objects.read(f"{s3}/metrics") == b"1\n"
        (folder / "metrics").write_text("1\n2\n")
    assert objects.read(f"{s3}/metrics") == b"1\n2\n" and not told
    with pytest.raises(KeyError), work.pushed(folder, say=told.append):
        (folder / "error.log").write_text("why")
        raise KeyError
    assert objects.read(f"{s3}/error.log") == b"why"
    work.leave(folder)


def test_homes_of_dead_processes_are_removed(s3, cache):
    program = "import sys, os, signal; from mvjax import files; from mvjax.stores import work\n"
    program += "work.enter(files.output(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", program, s3], env=os.environ, check=False)
    (left,) = (cache / "work").glob("*.alive")
    assert left.with_suffix("").is_dir()
    work._homes.clear()
    work.enter(files.output(s3))
    assert not left.exists() and not left.with_suffix("").exists()
    work.leave(files.output(s3))


def test_frozen_weights_of_a_store(url):
    objects.write(f"{url}/moshi/model.safetensors.index.json", json.dumps(
        {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}).encode())  # fmt: skip
    for name in ("one", "two"):
        objects.write(f"{url}/moshi/{name}.safetensors", name.encode())
    found = files.resolve(f"{url}/moshi", names=files.WEIGHTS)
    assert (
        found.name == files.WEIGHTS[0] and found.with_name("two.safetensors").read_text() == "two"
    )
    assert files.is_folder(f"{url}/moshi") and not files.is_folder(f"{url}/moshi/one.safetensors")
    assert files.beside(f"{url}/moshi/", "c.json") == f"{url}/moshi/c.json"
    assert files.beside(f"{url}/moshi/one.safetensors", "c.json") == f"{url}/moshi/c.json"
    assert files.find(f"{url}/moshi/c.json") is None and files.may_exist(f"{url}/moshi/c.json")
    with pytest.raises(
        FileNotFoundError, match=f"{url}/mosh: no such object, nor a folder with one"
    ):
        files.resolve(f"{url}/mosh", names=files.WEIGHTS)
