"""What a sweep asks: the study of an experiment file, as data that the sweep follows and the report draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

# One row a trial; scores against x; scores against the turns around the image, as the paper's figure 5.
Plot = Literal["table", "curve", "context switch"]


@dataclasses.dataclass(frozen=True)
class Point:
    """Where a trial stands in a plot."""

    trial: str  # its name in `sweep()`
    series: str = ""  # trials of one series are one line, or one color; "": the trial's own
    x: float | None = None  # of a curve


@dataclasses.dataclass(frozen=True)
class Asked:
    """One benchmark that every trial is evaluated with."""

    benchmark: str  # as `mvjax eval --benchmark` takes it
    prompts: tuple[str, ...] = ()  # prompt modes; (): all that the benchmark has
    limit: int | None = None  # samples; None: all

    def __post_init__(self) -> None:
        """Checks the limit."""
        if self.limit is not None and self.limit < 1:
            raise ValueError(
                f"benchmark {self.benchmark}: limit: expected at least 1, got {self.limit}"
            )


@dataclasses.dataclass(frozen=True)
class Study:
    """What `study()` of an experiment file returns, beside its `sweep() -> {trial: Config}`."""

    title: str
    question: str  # what the trials are compared for
    expected: str = ""  # what the paper found, or what we expect
    plot: Plot = "table"
    x_label: str = ""
    points: tuple[Point, ...] = ()  # in the order of the plot; trials without one follow
    benchmarks: tuple[Asked, ...] = ()  # (): the trials are trained only
    paper: str | None = None  # name of the paper's numbers in `report/paper.py`
    baseline: str | None = None  # the trial that the others are tested against, seed by seed

    def __post_init__(self) -> None:
        """Checks that a curve has an axis, and that no benchmark is asked twice."""
        missing = [one.trial for one in self.points if one.x is None]
        if self.plot == "curve" and (missing or not self.points):
            raise ValueError(f"points: a curve needs the x of every trial, got none of {missing}")
        names = [one.benchmark for one in self.benchmarks]
        if len(set(names)) < len(names):
            raise ValueError(f"benchmarks: expected each once, got {names}")

    def point(self, trial: str) -> Point:
        """Returns the point of a trial; one of its own if it has none."""
        found = next((one for one in self.points if one.trial == trial), Point(trial))
        return dataclasses.replace(found, series=found.series or trial)


def to_json(study: Study) -> dict[str, Any]:
    """Returns plain JSON values."""
    return dataclasses.asdict(study)


def from_json(data: dict[str, Any]) -> Study:
    """Inverse of `to_json`.

    Raises:
      ValueError: if a field is unknown or missing.
    """
    try:
        asked: Sequence[dict[str, Any]] = data["benchmarks"]
        benchmarks = tuple(Asked(**{**one, "prompts": tuple(one["prompts"])}) for one in asked)
        points = tuple(Point(**one) for one in data["points"])
        return Study(**{**data, "points": points, "benchmarks": benchmarks})
    except (KeyError, TypeError) as error:
        raise ValueError(f"study: {type(error).__name__}: {error}") from error
