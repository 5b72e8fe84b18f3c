"""The quickstart around its stages: order, times, metrics.json, and one clear message on failure."""

import dataclasses
import errno
import json
import platform
import sys
import types as pytypes

import pytest

from mvjax.digits import quickstart
from mvjax.report import html

MODES = {"text": 0.95, "audio": 0.8, "blind": 0.1, "shuffled": 0.1}


def _certificate(verdict: str = "pass") -> dict:
    reasons = [] if verdict == "pass" else ["max_abs_text_logit_error = 0.3 exceeds 0.0001"]
    return {
        "max_abs_logit_error": 2e-6,
        "greedy_frames_equal": 120,
        "verdict": verdict,
        "reasons": reasons,
    }


@pytest.fixture
def chain(monkeypatch):
    """Stages that do nothing but say that they ran; a test may make one fail."""
    ran = []

    def stage(name, result=None):
        def call(*args):
            ran.append(name)
            return result

        return call

    certificates = {"torch": _certificate(), "mlx": _certificate()}
    fake = pytypes.SimpleNamespace(
        ran=ran,
        certificates=certificates,
        plan=lambda out, short: pytypes.SimpleNamespace(
            out=out, short=short, run=out / "run", certify=lambda target: f"certify {target}!"
        ),
        data=stage("data"),
        train=stage("train"),
        evaluate=stage("evaluate", pytypes.SimpleNamespace(table=[{"kind": "all", "text": 0.95}])),
        export=stage("export", certificates),
        speak=stage("speak"),
        write_question=stage("write_question"),
        QuickstartResults=lambda *parts: parts,
        summary=lambda results: {
            "accuracy": MODES,
            "certificates": certificates,
            "gate_activation": {"image": float("nan")},
        },
    )
    page = pytypes.SimpleNamespace(compose=lambda results, timed: timed)
    monkeypatch.setitem(__import__("sys").modules, "mvjax.digits.stages", fake)
    monkeypatch.setitem(__import__("sys").modules, "mvjax.digits.page", page)
    monkeypatch.setattr("mvjax.digits.stages", fake, raising=False)
    monkeypatch.setattr("mvjax.digits.page", page, raising=False)
    monkeypatch.setattr(html, "write", lambda path, timed: path.write_text(repr(timed)))
    return fake


def test_stages_run_in_order_and_metrics_hold_what_was_asked_for(chain, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert quickstart.run(out) == 0
    assert chain.ran == ["data", "train", "evaluate", "export", "speak", "write_question"]
    written = json.loads((out / "metrics.json").read_text())
    assert written["accuracy"] == MODES
    assert written["certificates"]["mlx"]["greedy_frames_equal"] == 120
    assert set(written["stages"]) == {"data", "train", "evaluate", "export", "speak", "report"}
    assert written["seconds"] >= 0 and 0.01 < written["peak_memory_gb"] < 100
    assert written["gate_activation"] == {"image": None}  # JSON has no NaN
    shown = capsys.readouterr()
    assert f"mvjax serve {out}/run" in shown.out
    assert f"mvjax talk {out}/run --image {out}/question/image.png" in shown.out
    assert "== train" in shown.out and "all   95.0" in shown.out and not shown.err
    assert "'all'" in (out / "report.html").read_text()


@pytest.mark.parametrize("stage", ["data", "train", "evaluate", "export", "speak"])
def test_any_failing_stage_ends_with_one_message_and_a_status(chain, tmp_path, capsys, stage):
    def fail(*args):
        raise ValueError("speech_rows: expected 4, got 5; set it to 4")

    setattr(chain, stage, fail)
    assert quickstart.run(tmp_path) == 1
    shown = capsys.readouterr().err
    assert f"stage '{stage}' failed" in shown and "speech_rows: expected 4" in shown
    assert "remedy" in shown and "Traceback" not in shown
    assert "test_quickstart.py" in (tmp_path / "error.log").read_text()
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "free some disk space"),
        (PermissionError(errno.EACCES, "denied"), "--out DIR"),
        (
            ModuleNotFoundError("the mlx runtime needs 'mlx'"),
            "pip install 'mvjax[train]'",
        ),
        (MemoryError(), "close other programs"),
        (ValueError("a: expected 1, got 2"), "as the cause says"),
        (RuntimeError("what"), "report the log"),
    ],
)
def test_remedies_fit_the_cause(error, remedy):
    text = quickstart.failure_text("train", 12.4, error)
    assert remedy in text and "'train' failed after 12 s" in text
    assert type(error).__name__ in text


def test_a_folder_that_cannot_be_made_is_one_clear_message(chain, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert quickstart.run(tmp_path / "file" / "out") == 1
    assert "stage 'data' failed" in capsys.readouterr().err
    assert chain.ran == []


def test_a_failed_certificate_fails_the_run_but_keeps_its_report(chain, tmp_path, capsys):
    chain.certificates["mlx"] = _certificate("fail")
    assert quickstart.run(tmp_path) == 1
    shown = capsys.readouterr().err
    assert "mlx: max_abs_text_logit_error = 0.3" in shown
    assert (tmp_path / "report.html").exists() and (tmp_path / "metrics.json").exists()


def test_a_runtime_that_is_not_installed_is_told_and_no_failure(
    chain, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(quickstart.messages, "typed", str)
    missing = {"needs": "torch", "install": "pip install it"}
    chain.certificates["torch"] = {"verdict": "not run", "reasons": [], "not_run": missing}
    assert quickstart.run(tmp_path) == 0
    shown = capsys.readouterr().out
    assert "no runtime has run it, as torch is not\ninstalled" in shown
    assert "\n\n    pip install it\n    certify torch!\n" in shown and "mlx" not in shown
    brings_cuda = (sys.platform, platform.machine()) == ("linux", "x86_64")
    assert ("--extra-index-url" in shown) == brings_cuda
    chain.certificates["torch"] = _certificate("fail") | {"not_run": missing}  # wrong weights
    assert quickstart.run(tmp_path) == 1
    assert "certify torch!" not in capsys.readouterr().out


def test_stopping_says_how_to_go_on(chain, tmp_path, capsys):
    def stop(*args):
        raise KeyboardInterrupt

    chain.train = stop
    assert quickstart.run(tmp_path) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_clock_times_stages_and_the_whole():
    clock = quickstart.StageClock()
    with clock.stage("a"):
        pass
    with pytest.raises(quickstart.Failed, match="stage 'b' failed"), clock.stage("b"):
        raise KeyError("x")
    assert [s.name for s in clock.done] == ["a"]
    assert dataclasses.asdict(clock.total())["seconds"] >= clock.done[0].seconds
