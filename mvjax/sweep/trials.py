"""What a sweep consists of: an experiment file's trials, each with every seed, as runs in one folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mvjax import files, messages, run_folder
from mvjax.config import beside_moshi, schema, text
from mvjax.config import study as study_lib
from mvjax.stores import places

# Written into OUT, and into OUT/TRIAL; what lies in OUT/TRIAL/seed-N is in `outcome`.
SWEEP = run_folder.SWEEP
COST = "cost.json"

_NAME = re.compile(r"[\w+][\w.+-]*")  # a folder is named after the trial, a word of commands
_TAKEN = (SWEEP, f"{SWEEP}{files.DRAFT}", "report", "compiled")  # in OUT by a sweep, or its report


@dataclasses.dataclass(frozen=True)
class TrialRun:
    """One trial with one seed."""

    name: str
    seed: int
    config: schema.Config
    folder: Path  # its run folder

    def __str__(self) -> str:
        """As messages name it."""
        return f"{self.name}/seed-{self.seed}"


class Asking(NamedTuple):
    """How a benchmark of the study is asked, as its code says."""

    modes: tuple[str, ...]  # of prompts
    # in what an evaluation in a run folder, after a step, is another one, which this one would replace
    replaces: Callable[[Path, int], list[str]]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The trials of an experiment file that a command asks for."""

    experiment: Path
    settings: tuple[str, ...]  # of --set
    study: study_lib.Study
    configs: dict[str, schema.Config]  # of the trials to run
    seeds: int
    out: Path
    data: Path | None = None  # of benchmarks with public data
    asking: Mapping[str, Asking] = dataclasses.field(default_factory=dict)  # by benchmark

    def runs(self) -> list[TrialRun]:
        """Every trial with seed 0, then every trial with seed 1, and so on."""
        return [
            TrialRun(name, seed, _with_seed(config, seed), self.out / name / f"seed-{seed}")
            for seed in range(self.seeds)
            for name, config in self.configs.items()
        ]

    def train(self, run: TrialRun) -> list[str]:
        """The command that trains a run."""
        settings = [*self.settings, f"train.seed={run.seed}"]
        options = [word for setting in settings for word in ("--set", setting)]
        place = ["--pick", run.name, *options, "--out", places.named(run.folder)]
        return ["mvjax", "train", str(self.experiment), *place]

    def evaluate(self, run: TrialRun, asked: study_lib.Asked) -> list[str]:
        """The command that evaluates a run with one benchmark; it replaces what another question left."""
        options = [word for prompt in asked.prompts for word in ("--prompt", prompt)]
        options += [] if asked.limit is None else ["--limit", str(asked.limit)]
        options += [] if self.data is None else ["--data", str(self.data)]
        options += ["--again"] if self.replaces(run, asked) else []
        return ["mvjax", "eval", places.named(run.folder), "--benchmark", asked.benchmark, *options]

    def replaces(self, run: TrialRun, asked: study_lib.Asked) -> list[str]:
        """In what an evaluation that is there is another one than the study asks for, in words."""
        asking = self.asking.get(asked.benchmark)
        return [] if asking is None else asking.replaces(run.folder, run.config.train.steps)


def load(
    experiment: Path,
    *,
    out: Path,
    picks: Sequence[str] = (),
    settings: Sequence[str] = (),
    seeds: int = 1,
    data: Path | None = None,
) -> Sweep:
    """Reads an experiment file; of its trials those of `picks`, or all if there are none.

    Without `study()` the question is the first line of the file, and trials are trained only.

    Raises:
      ValueError: if the file fails or has no `sweep()`, or it has no trial of a name that is picked, or that
        the study names; if a setting does not fit a trial.
    """
    with text.experiment_file(experiment) as names:
        configs = names["sweep"]() if "sweep" in names else {}
        first = (names.get("__doc__") or "").partition("\n")[0]
        default = study_lib.Study(experiment.stem, first)
        study = names["study"]() if "study" in names else default
    if not configs:
        raise ValueError(f"{experiment}: expected a function sweep(): {{name: config}}, found none")
    if bad := [name for name in configs if not _NAME.fullmatch(name) or name.lower() in _TAKEN]:
        raise ValueError(
            f"{experiment}: sweep(): expected names of letters, digits, _ and +, after the first also . and"
            f" -, and not {messages.names(_TAKEN)}; got {messages.names(bad)}"
        )
    if seeded := [setting for setting in settings if setting.startswith("train.seed=")]:
        raise ValueError(
            f"--set {seeded[-1]}: expected no seed, as each trial is trained with those of --seeds"
        )
    named = [one.trial for one in study.points] + ([study.baseline] if study.baseline else [])
    for name in [*picks, *named]:
        if name not in configs:
            place = "--pick" if name in picks else "study()"
            meant = messages.did_you_mean(name, configs)
            raise ValueError(f"{experiment}: {place}: no '{name}' in sweep(); {meant}")
    said = [setting.partition("=")[0] for setting in settings]
    chosen = {
        name: beside_moshi.follow(text.override(config, settings), said=said)
        for name, config in configs.items()
        if not picks or name in picks
    }
    return Sweep(experiment, tuple(settings), study, chosen, seeds, out, data)


def write(sweep: Sweep) -> None:
    """Writes OUT/sweep.json; trials and seeds of earlier commands stay in it."""
    path, earlier = sweep.out / SWEEP, {}
    if path.exists():
        earlier = read(path)
    trials = {name: text.to_json(config) for name, config in sweep.configs.items()}
    known = earlier.get("trials", {})
    data = {
        "experiment": str(sweep.experiment),
        "settings": list(sweep.settings),
        "study": study_lib.to_json(sweep.study),
        "seeds": list(range(max(sweep.seeds, len(earlier.get("seeds", []))))),
        "trials": known | trials,
    }
    sweep.out.mkdir(parents=True, exist_ok=True)
    content = (json.dumps(data, indent=1) + "\n").encode()
    files.write_atomic(path, content, shared=True)


def read(path: Path) -> dict[str, Any]:
    """Returns what `write` wrote.

    Raises:
      ValueError: if the file is damaged.
    """
    with contextlib.suppress(ValueError):
        data = json.loads(path.read_bytes())
        if isinstance(data, dict) and data.keys() >= {"study", "seeds", "trials"}:
            return data
    raise ValueError(f"{path}: expected the description of a sweep; delete it and run again")


def shell(command: Sequence[str]) -> str:
    """Returns a command as a shell reads it."""
    return shlex.join(command)


def _with_seed(config: schema.Config, seed: int) -> schema.Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
