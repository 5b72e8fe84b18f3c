"""`mvjax quickstart`: data -> train -> evaluate -> export -> speak -> report, with each stage timed.

Heavy imports happen inside the stages, so that their time and their failures are counted there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import platform
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvjax import messages, run_folder
from mvjax.eval import metrics
from mvjax.report import html
from mvjax.train import memory

if TYPE_CHECKING:
    from mvjax.digits import stages

_CPU_TORCH = "https://download.pytorch.org/whl/cpu"
_AGAIN = "then run the same command again: finished work is kept"


class Failed(Exception):
    """A failed stage; the text is the message for the user: stage, cause, remedy."""


@dataclasses.dataclass
class StageClock:
    """Records the wall-clock time of each stage and the peak memory at its end."""

    done: list[html.Stage] = dataclasses.field(default_factory=list)
    started: float = dataclasses.field(default_factory=time.perf_counter)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announces and times one stage; any exception of it becomes `Failed`."""
        begin = time.perf_counter()
        print(f"== {name}", flush=True)
        try:
            yield
        except Exception as error:
            raise Failed(failure_text(name, time.perf_counter() - begin, error)) from error
        self.done.append(html.Stage(name, time.perf_counter() - begin, memory.host_peak_gb()))
        print(f"   {name}: {self.done[-1].seconds:.1f} s", flush=True)

    def total(self) -> html.Stage:
        """The time since the start and the peak memory."""
        return html.Stage("all", time.perf_counter() - self.started, memory.host_peak_gb())


def run(out: Path, *, short: bool = False) -> int:
    """Runs the whole chain into the folder `out`, continuing what is there; returns the exit status.

    `short` means few steps and questions: shows that every stage works, not that the model learns.
    """
    memory.keep_freed()
    try:
        _chain(out, short=short)
    except Failed as failed:
        print(f"\n{failed}{_keep_traceback(out, failed)}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print(f"\nquickstart: stopped by the user; to go on, {_AGAIN[5:]}", file=sys.stderr)
        return 130
    return 0


def failure_text(stage: str, seconds: float, error: BaseException) -> str:
    """The message for the user: stage, cause, remedy."""
    cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return (
        f"quickstart: stage {stage!r} failed after {seconds:.0f} s\n"
        f"  cause:  {cause}\n"
        f"  remedy: {_remedy(error)}"
    )


def _chain(out: Path, *, short: bool) -> None:
    clock = StageClock()
    with clock.stage("data"):
        from mvjax.digits import stages

        out.mkdir(parents=True, exist_ok=True)
        plan = stages.plan(out, short=short)
        stages.data(plan)
    with clock.stage("train"):
        model = stages.train(plan)
    with clock.stage("evaluate"):
        evaluation = stages.evaluate(model, plan)
    with clock.stage("export"):
        certificates = stages.export(model, evaluation, plan)
    with clock.stage("speak"):
        speech = stages.speak(model, evaluation, plan)
        stages.write_question(evaluation, plan)
    results = stages.QuickstartResults(plan, model, evaluation, certificates, speech)
    with clock.stage("report"):
        from mvjax.digits import page

        content = page.compose(results, [*clock.done, clock.total()])
        html.write(out / run_folder.REPORT, content)
    _write_metrics(out, stages.summary(results), clock)
    next_steps = _what_next(plan) + _to_certify(plan, certificates)
    print(f"\n{metrics.text_table(evaluation.table)}\n\n{next_steps}")
    _check_certificates(certificates)


def _what_next(plan: stages.QuickstartPlan) -> str:
    """Commands that work now, with what trained the model."""
    out, run = plan.out, plan.run
    image, question = out / run_folder.QUESTION_IMAGE, out / run_folder.QUESTION_AUDIO
    talk = f"mvjax talk {run} --image {image} --audio {question} --out {out / 'answer.wav'}"
    return f"""Open {out / run_folder.REPORT}; talk to the model in a browser, or from files:

    {messages.typed(f"mvjax serve {run}")}
    {messages.typed(talk)}"""


def _to_certify(plan: stages.QuickstartPlan, certificates: dict[str, dict[str, Any]]) -> str:
    """Says which exports no runtime has run yet, and what does; "" if none."""
    return "".join(
        f"""

Export to {target}: its weights are the model's, but no runtime has run it, as {missing["needs"]} is not
installed. This completes its certificate{_without_cuda(missing["needs"])}:

    {messages.typed(missing["install"])}
    {messages.typed(plan.certify(target))}"""
        for target, found in certificates.items()
        if (missing := found.get("not_run")) and found["verdict"] == "not run"
    )


def _without_cuda(package: str) -> str:
    """What keeps pip from bringing CUDA with PyTorch, where it would."""
    if (package, sys.platform, platform.machine()) != ("torch", "linux", "x86_64"):
        return ""
    return f" (without a GPU, add --extra-index-url\n{_CPU_TORCH} to the first line: else it brings CUDA)"


def _write_metrics(out: Path, summary: dict[str, Any], clock: StageClock) -> None:
    cost = {
        s.name: {"seconds": round(s.seconds, 1), "peak_memory_gb": round(s.peak_gb, 3)}
        for s in (*clock.done, clock.total())
    }
    summary = summary | cost.pop("all") | {"stages": cost}
    summary = json.loads(json.dumps(summary), parse_constant=lambda _: None)  # JSON has no NaN
    try:
        text = json.dumps(summary, indent=1)
        (out / run_folder.QUICKSTART_METRICS).write_text(text + "\n")
    except OSError as error:
        raise Failed(failure_text("report", 0, error)) from error


def _check_certificates(certificates: dict[str, dict[str, Any]]) -> None:
    """A runtime that disagrees fails the quickstart, after its report is written."""
    failed = {n: c for n, c in certificates.items() if c["verdict"] not in ("pass", "not run")}
    if failed:
        causes = " | ".join(f"{name}: {'; '.join(c['reasons'])}" for name, c in failed.items())
        raise Failed(
            "quickstart: stage 'export' failed: a runtime does not agree with the JAX model\n"
            f"  cause:  {causes}\n"
            "  remedy: do not use this export; see certificate.json in its folder and report it"
        )


def _remedy(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"pip install 'mvjax[train]', {_AGAIN}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"free some disk space (a quickstart needs 0.5 GB), {_AGAIN}"
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return "choose a folder that you may write to: mvjax quickstart --out DIR"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return f"close other programs (a quickstart needs 6 GB of memory), {_AGAIN}"
    if isinstance(error, ValueError):
        return f"as the cause says, {_AGAIN}; or start in a fresh folder with --out DIR"
    return "run it again in a fresh folder with --out DIR; if it fails again, report the log"


def _keep_traceback(out: Path, failed: Failed) -> str:
    """Writes the traceback to a file and returns a line that names it, or "" if that fails."""
    path = out / run_folder.ERROR_LOG
    try:
        path.write_text("".join(traceback.format_exception(failed)))
    except OSError:
        return ""
    return f"\n  log:    {path}"
