"""Fuzzing of decoders: valid files, damaged in every way, are decoded or refused with a ValueError."""

import contextlib
import faulthandler
import sys

import hypothesis
from hypothesis import strategies as st

HANG = 60  # seconds for one input, on a busy machine
MEMORY = 1 << 30  # bytes that decoding one input may take
SHORT, LONG = 200, 10_000  # inputs

_NUMBERS = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x01",
)
_DAMAGE = ("flip", "overwrite", "number", "insert", "delete", "truncate", "splice", "repeat")
_OPERATIONS = st.tuples(
    st.sampled_from(_DAMAGE),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=1, max_size=8),
)


def damaged(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """One of the seeds after one to six operations; the others are what it is spliced with."""
    operations = st.lists(_OPERATIONS, min_size=1, max_size=6)
    return st.builds(
        lambda seed, operations: _damage(seeds, seed, operations),
        st.integers(0, len(seeds) - 1),
        operations,
    )


def fuzz(seeds: list[bytes], check, count: int, *, errors=ValueError) -> int:
    """Calls check(damaged bytes) `count` times, always the same; returns how many were refused."""
    refused = 0

    @hypothesis.settings(
        max_examples=count, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(damaged(seeds))
    def run(data):
        nonlocal refused
        faulthandler.dump_traceback_later(HANG, exit=True)
        try:
            check(data)
        except errors as error:
            assert str(error)
            refused += 1
        finally:
            faulthandler.cancel_dump_traceback_later()

    for seed in seeds:
        check(seed)
    with _little_memory():
        run()
    return refused


@contextlib.contextmanager
def _little_memory():
    """Allocations beyond MEMORY raise MemoryError, where the system can be told so."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _damage(seeds: list[bytes], seed: int, operations) -> bytes:
    data = bytearray(seeds[seed])
    for kind, a, b, value in operations:
        place = a % (len(data) + 1)
        length = b % (1 << a % 12)  # short ranges are as likely as long ones
        if kind == "flip" and data:
            data[place % len(data)] ^= value[0] or 1
        elif kind == "overwrite":
            data[place : place + len(value)] = value
        elif kind == "number":
            data[place : place + 4] = _NUMBERS[b % len(_NUMBERS)]
        elif kind == "insert":
            data[place:place] = value
        elif kind == "delete":
            del data[place : place + length]
        elif kind == "truncate":
            del data[place:]
        elif kind == "splice":
            other = seeds[b % len(seeds)]
            data[place:] = other[b % (len(other) + 1) :]
        elif kind == "repeat":
            data[place:place] = data[place : place + length]
    return bytes(data)
