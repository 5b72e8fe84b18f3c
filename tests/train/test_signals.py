"""Signals to a process that waits in a call that Python cannot interrupt, and to one that trains."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from mvjax.train import output, signals

WAITS = """
import hashlib, signal, sys, time
from mvjax.train import signals
if sys.argv[2] == "heeds":  # a shell's background job ignores SIGINT, nohup's SIGHUP, and a child inherits it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in set(signals.STOPPING) - {signal.SIGINT}:
        signal.signal(number, signal.SIG_DFL)
try:
    with signals.Signals() as on_signal:
        if sys.argv[1] == "train":
            on_signal.training(lambda: "loses steps 5 to 7")
            print("ready", flush=True)
            while not on_signal.wished.is_set():
                time.sleep(0.01)
            print("wished", flush=True)
            doing = ""
        else:
            doing = "compiling"
        with on_signal.at_once(doing):
            print("ready", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes without Python, as in a compiler
except signals.Stopped as stopped:
    sys.exit(stopped.status)
"""


@pytest.fixture
def start():
    started = []

    def begin(what, *launcher):
        heeds = "as started" if launcher else "heeds"
        process = subprocess.Popen(
            [*launcher, sys.executable, "-c", WAITS, what, heeds],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "name", "status"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGHUP, "SIGHUP", 0)]
)
def test_while_it_compiles_a_signal_ends_it_at_once_and_says_what_is_lost(
    start, number, name, status
):
    process = start("compile")
    time.sleep(0.2)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert told == f"{name} while compiling: ends at once; no step is lost\n"
    assert process.returncode == status


@pytest.mark.parametrize("number", signals.STOPPING)
def test_while_it_trains_every_signal_lets_it_save_and_a_second_ctrl_c_ends_it(start, number):
    process = start("train")
    process.send_signal(number)
    assert process.stdout.readline() == "wished\n"
    process.send_signal(signal.SIGTERM)  # changes nothing
    time.sleep(signals._ONE_PRESS + 0.1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    first, second = told.splitlines()
    assert first.endswith("saves and ends; Ctrl-C again ends at once: loses steps 5 to 7")
    assert second.startswith("Ctrl-C again: ends at once; loses steps 5 to 7.")
    assert process.returncode == 130


def test_what_was_ignored_stays_ignored(start):
    process = start("compile", "nohup")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None


def test_the_main_thread_stops_where_python_runs_and_all_handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in signals.STOPPING}
    with pytest.raises(KeyboardInterrupt) as stopped, signals.Signals(quiet=True):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    assert stopped.value.status == 0
    assert before == {number: signal.getsignal(number) for number in signals.STOPPING}
    assert signal.set_wakeup_fd(-1) == -1


def test_a_handler_that_is_not_python_is_out_of_reach(monkeypatch):
    monkeypatch.setattr(signals.signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signals.signal, "signal", lambda number, handler: calls.append(handler))
    calls = []  # signal.signal returns None for a handler that is not Python's
    with signals.Signals():
        count = len(calls)
    assert count and calls[count:] == [signal.SIG_DFL] * count


@pytest.mark.parametrize("sink", ["full", "pipe", None])
def test_output_that_fails_ends_nothing(monkeypatch, sink):
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    with contextlib.ExitStack() as stack:
        for file in (writer, full):
            stack.callback(os.close, file)
        stream = sink and os.fdopen({"full": full, "pipe": writer}[sink], "w", closefd=False)
        monkeypatch.setattr(sys, "stderr", stream)
        with output.unbreakable():
            for _ in range(3):
                print("x" * 10_000, file=sys.stderr, flush=True)
            assert stream is None or not sys.stderr.isatty()
        assert sys.stderr is stream
        if stream is not None:
            with pytest.raises(OSError, match="No space|Broken pipe"):
                stream.close()
