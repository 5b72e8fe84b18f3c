import json
import os
import subprocess
import sys
import threading

import pytest

from mvjax import locks
from mvjax.stores import lease, objects

HOLDER = """
import sys
from mvjax.stores import lease
with lease.held(sys.argv[1], lost=print):
    print("held", flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "RENEWAL", 0.2)
    monkeypatch.setattr(lease, "PATIENCE", 0.8)
    monkeypatch.setattr(lease, "_SETTLE", 0.05)


def test_one_process_at_a_time(s3, monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE", 60)
    place = f"{s3}/lock"
    program = HOLDER.replace("\nwith", "\nlease.RENEWAL = 0.1\nwith")
    with subprocess.Popen(
        [sys.executable, "-c", program, place],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(locks.Taken, match=f"process {other.pid} on "),
            lease.held(place, lost=print),
        ):
            pass
        other.kill()
    with lease.held(place, lost=print):  # at once: it is seen that the process is gone
        assert json.loads(objects.read(place))["pid"] == os.getpid()
    assert objects.stat(place) is None


def test_what_another_machine_left_is_taken_after_a_while(s3, monkeypatch):
    place = f"{s3}/lock"
    objects.write(place, json.dumps({"id": "elsewhere", "machine": "x", "pid": 1}).encode())
    waits = []
    sleep = lease.time.sleep
    monkeypatch.setattr(lease.time, "sleep", lambda s: (waits.append(s), sleep(s))[1])
    with lease.held(place, lost=print):
        assert len(waits) > 10
    objects.write(place, b"no lease")
    with lease.held(place, lost=print):
        assert objects.read(place) != b"no lease"


def test_a_holder_learns_that_it_lost_it(s3):
    place, told, heard = f"{s3}/lock", [], threading.Event()
    with lease.held(place, lost=lambda holder: (told.append(holder), heard.set())):
        objects.write(place, json.dumps({"id": "other", "holder": "process 7 on b"}).encode())
        assert heard.wait(5)
    assert told == ["process 7 on b"]
    assert json.loads(objects.read(place))["id"] == "other"  # and leaves it alone
