"""Signals of a user, a terminal or a scheduler: a run saves and ends, or ends at once if nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from mvjax.stores import places

# SIGHUP: the terminal is gone; SIGUSR1, SIGUSR2, SIGXCPU: what schedulers send before the time is up
STOPPING = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU
)  # fmt: skip
_GRACE = 1.0  # seconds in which Python may end by itself
_ONE_PRESS = 0.5  # seconds within which a second SIGINT is no second Ctrl-C: launchers forward it


class Stopped(KeyboardInterrupt):
    """A signal ended the run while it started or compiled."""

    def __init__(self, number: int) -> None:
        super().__init__(_name(number))
        self.status = 128 + signal.SIGINT if number == signal.SIGINT else 0


class Signals:
    """What a run does on one of `STOPPING`; use as a context manager, in the main thread.

    While it starts or compiles (`at_once`) it ends at once. While it trains, `wished` is set, and it ends
    after the step in progress, saved; a second Ctrl-C ends it at once. A thread does what Python cannot do
    while it waits for a compiler, and says what will be lost.

    A signal that was ignored, as under nohup, stays ignored.

    Attributes:
      wished: set when the run shall save and end.
      say: prints a notice, from any thread.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.wished = threading.Event()
        self.say: Callable[[str], None] = (lambda _: None) if quiet else _print
        self._lost: Callable[[], str] = lambda: "no step is lost"
        self._doing = "starting"  # empty: training
        self._handlers: dict[int, Any] = {}
        self._first: float | None = None  # when the first signal came
        self._ended = threading.Event()

    @contextlib.contextmanager
    def at_once(self, doing: str) -> Iterator[None]:
        """Inside, a signal ends the run at once; `doing` says what it does, such as "compiling"."""
        before, self._doing = self._doing, doing
        yield
        self._doing = before

    def training(self, lost: Callable[[], str]) -> None:
        """From here on a signal lets the step be finished and saved; a second one loses what `lost` says."""
        self._doing, self._lost = "", lost

    def __enter__(self) -> Signals:
        """Sets the handlers; elsewhere than in the main thread there are none."""
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in STOPPING:
            now = signal.getsignal(number)
            taken = now not in (signal.SIG_DFL, None) and number not in STOPPING[:3]
            if now is not signal.SIG_IGN and not taken:
                self._handlers[number] = signal.signal(number, self._handle)
        self._reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._writer = writer
        self._wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Puts the earlier handlers back."""
        if not self._handlers:
            return
        self._ended.set()
        for number, handler in self._handlers.items():  # None: not Python's, and out of its reach
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._wakeup)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _handle(self, number: int, _: Any) -> None:
        """In the main thread, as soon as Python runs there."""
        if self._doing:
            raise Stopped(number)
        self.wished.set()

    def _watch(self) -> None:
        """In a thread of its own, at once."""
        while data := self._reader.recv(1):
            if data[0] in self._handlers:
                self._tell(data[0])

    def _tell(self, number: int) -> None:
        name, lost, now = _name(number), self._lost(), time.monotonic()
        if self._doing:
            self.say(f"{name} while {self._doing}: ends at once; {lost}")
            if not self._ended.wait(_GRACE):
                end(Stopped(number).status)
        elif self._first is None:
            self._first = now
            self.wished.set()
            self.say(
                f"{name}: finishes its step, saves and ends; Ctrl-C again ends at once: {lost}"
            )
        elif number == signal.SIGINT and now > self._first + _ONE_PRESS:
            self.say(f"{name} again: ends at once; {lost}. Run the same command to resume.")
            end(Stopped(number).status)


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _print(text: str) -> None:
    print(places.named(text), file=sys.stderr, flush=True)


def end(status: int) -> NoReturn:
    """Ends this process as it is: Python may be waiting for a compiler or a device, or for threads of jax."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(end="\x1b[?25h\n", file=sys.stderr, flush=True)  # the progress line hid the cursor
    os._exit(status)
