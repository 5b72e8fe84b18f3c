"""Both emulators, once a session; every test has a folder of its own in a bucket, and a cache of its own."""

import contextlib
import sys
from pathlib import Path

import pytest

for room in ("data", "train", "sweep", "report"):
    sys.path.append(str(Path(__file__).parents[1] / room))


@pytest.fixture(scope="session")
def buckets():
    import emulators

    with contextlib.ExitStack() as stack:
        yield {
            "s3": stack.enter_context(emulators.s3()),
            "gs": stack.enter_context(emulators.gcs()),
        }


@pytest.fixture(params=["s3", "gs"])
def url(request, buckets, cache):
    """A folder of a store, which is empty."""
    return f"{buckets[request.param]}/{request.node.name.partition('[')[0]}"


@pytest.fixture
def s3(request, buckets, cache):
    return f"{buckets['s3']}/{request.node.name.partition('[')[0]}"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of copies; what an earlier test held is forgotten."""
    from mvjax.stores import staging

    folder = tmp_path / "cache"
    monkeypatch.setenv("MVJAX_CACHE", str(folder))
    monkeypatch.setattr(staging, "_held", set())
    monkeypatch.setattr(staging, "_file", [])
    return folder


@pytest.fixture
def fetched(monkeypatch):
    """The locations that are downloaded, in order."""
    from mvjax.stores import objects

    found, download = [], objects.download

    def noted(place, path):
        found.append(place)
        download(place, path)

    monkeypatch.setattr(objects, "download", noted)
    return found
