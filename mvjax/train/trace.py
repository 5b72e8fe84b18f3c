"""Profiler traces of a range of steps (`--profile A:B`), for xprof or TensorBoard."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from mvjax import run_folder

STEP_NAME = "train"


class Span(NamedTuple):
    """Steps to trace, first and last included; counted from 1, as in the logs."""

    first: int
    last: int


def parse(text: str) -> Span:
    """Reads A:B.

    Raises:
      ValueError: if it is not two numbers with 1 <= A <= B.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    span = Span(*map(int, match.groups())) if match else Span(0, 0)
    if not 1 <= span.first <= span.last:
        raise ValueError(
            f"--profile {text}: expected A:B, the first and last step to trace, 1 <= A <= B"
        )
    return span


class StepTracer:
    """Traces the steps of a span into `RUN/profile/PROCESS`; use as a context manager.

    A session that starts or resumes inside the span traces the rest of it.
    """

    def __init__(self, folder: Path, span: Span | None, *, say: Callable[[str], None]) -> None:
        """Traces `span`, or nothing; `say` prints where the trace is."""
        self._folder = folder / run_folder.PROFILE / str(jax.process_index())
        self._span, self._say = span or Span(0, 0), say
        self._first: int | None = None  # traced; None while not tracing
        self._last = 0

    def __enter__(self) -> StepTracer:
        """Tracing starts with the first step of the span."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends a trace that is still open."""
        self._end()

    def step(self, number: int) -> jax.profiler.StepTraceAnnotation:
        """Starts the trace if the step is in the span; returns the context in which to run the step."""
        if self._first is None and self._span.first <= number <= self._span.last:
            jax.profiler.start_trace(str(self._folder))
            self._first = number
        self._last = number
        return jax.profiler.StepTraceAnnotation(STEP_NAME, step_num=number)

    def after(self, number: int, metrics: Mapping[str, jax.Array]) -> None:
        """Ends the trace after the last step of the span, once the devices have finished it."""
        if self._first is not None and number >= self._span.last:
            jax.block_until_ready(metrics)
            self._end()

    def _end(self) -> None:
        if self._first is not None:
            jax.profiler.stop_trace()
            self._say(f"trace of steps {self._first} to {self._last}: {self._folder}")
            self._first = None
