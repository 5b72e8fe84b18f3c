"""Object stores on loopback: S3 by moto, Google Cloud Storage by gcp-storage-emulator; in this process."""

import contextlib
import logging
import os
import urllib.request
from collections.abc import Iterator

BUCKET = "bucket"


@contextlib.contextmanager
def s3() -> Iterator[str]:
    """Gives s3://BUCKET."""
    from moto import server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    address = "http://127.0.0.1:{1}".format(*running.get_host_and_port())
    settings = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with _known(settings):
            request = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
            urllib.request.urlopen(request).close()
            yield f"s3://{BUCKET}"
    finally:
        running.stop()


@contextlib.contextmanager
def gcs() -> Iterator[str]:
    """Gives gs://BUCKET."""
    from gcp_storage_emulator import server

    logging.getLogger("gcp_storage_emulator").setLevel(logging.ERROR)
    running = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    running.start()
    port = running._api._httpd.server_address[1]
    try:
        with _known({"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}):
            yield f"gs://{BUCKET}"
    finally:
        running.stop()


@contextlib.contextmanager
def _known(settings: dict[str, str]) -> Iterator[None]:
    """Sets variables for this process and those that it starts."""
    from mvjax.stores import objects

    earlier = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    objects._file_system.cache_clear()  # clients keep the address that they began with
    try:
        yield
    finally:
        objects._file_system.cache_clear()
        for name, value in earlier.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
