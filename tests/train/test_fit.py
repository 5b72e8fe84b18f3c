import dataclasses
import json
import os
import re
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import same_state
import toy

from mvjax import run_folder, tree
from mvjax.config import beside_moshi, schema
from mvjax.train import callbacks, checkpoint, fit, load, phases, resume, trace

MEASURED = "second|memory|utilization"
MESH = schema.MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module", autouse=True)
def compile_once(compiled):
    """Every fit of one config compiles the same program: keep it on disk.

    Promotion is not strict here, because optax promotes its step count (test_step.py is, for the loss).
    """
    with toy.compilation_cache(compiled), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    return tmp_path_factory.mktemp("frozen")


@pytest.fixture(scope="module")
def config(frozen):
    return beside_moshi.follow(toy.make_config(frozen, mesh=MESH))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """(run folder, summary) of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, fit.fit(config, folder, data=toy.Data(config.data), quiet=True)


class Interrupted(toy.Data):
    """Sends SIGTERM to this process while it makes the batch of one step."""

    def __init__(self, data, *, at):
        super().__init__(data)
        self._at = at

    def __getitem__(self, step):
        if step == self._at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(step)


def assert_same_run(first: Path, second: Path) -> None:
    """Same adapters, optimizer state and counters, bit for bit; same metrics but for the speed."""
    found = [checkpoint.newest(folder / run_folder.CHECKPOINTS) for folder in (first, second)]
    assert [each.metadata["step"] for each in found] == [toy.STEPS] * 2
    same_state.check(*found)
    assert metrics(first) == metrics(second)


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not re.search(MEASURED, k)} for line in lines]


def test_run_folder(whole, config):
    folder, summary = whole
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [1, 2, 4, 6, 8, 10, 12]
    assert lines[-1]["loss"] < lines[0]["loss"]
    expected = {
        *("loss", "text_speech", "text_speechless", "audio_speech", "gate_speech"),
        *("gate_speechless", "grad_norm", "learning_rate", "skipped", "step"),
        *("gate_speech_layers", "gate_speechless_layers"),
    }
    assert set(lines[0]) == expected
    for kind in ("gate_speech", "gate_speechless"):
        layers = lines[-1][f"{kind}_layers"]
        assert len(layers) == 3 and len(set(layers)) == 3
        assert np.mean(layers) == pytest.approx(lines[-1][kind], rel=1e-6)
    assert summary.step == toy.STEPS and summary.finished and summary.skipped == 0
    assert json.loads((folder / "summary.json").read_text())["frozen_hash"] == summary.frozen_hash
    assert load.read_config(folder) == config
    names = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert names == ["00000008", "00000012"]
    assert list((folder / "tensorboard").glob("events*"))


def test_frozen_hash_is_of_the_files(whole, config):
    stored = toy.stored(config)
    frozen = tree.unflatten({p: stored[p] for p in tree.flatten(load.shapes(config).frozen)})
    assert whole[1].frozen_hash == load.tree_hash(frozen)


def test_trained_gives_the_whole_model(whole, config):
    run = load.trained(whole[0])
    assert run.step == toy.STEPS
    assert run.config == config
    tree.assert_same_tree(tree.merge(*load.shapes(config)), run.params, place="trained")


def test_sigterm_saves_and_resume_is_exact(whole, config, tmp_path):
    folder = tmp_path / "run"
    stopped = fit.fit(config, folder, data=Interrupted(config.data, at=6), quiet=True)
    assert (stopped.step, stopped.finished) == (7, False)  # the step in progress is finished
    with (folder / "metrics.jsonl").open("a") as file:  # a later line, and one cut short
        file.write('{"step": 99}\n{"step": 7, "lo')
    resumed = fit.fit(config, folder, data=toy.Data(config.data), quiet=True)
    assert resumed.finished and resumed.frozen_hash == stopped.frozen_hash
    assert_same_run(whole[0], folder)


def test_a_finished_run_does_nothing(whole, config):
    folder, summary = whole
    before = metrics(folder)
    again = fit.fit(config, folder, data=toy.Data(config.data), quiet=True)
    assert again.step == toy.STEPS and again.metrics == summary.metrics
    assert metrics(folder) == before


def test_another_config_is_refused(whole, config):
    changed = toy.with_train(
        config, seed=3, steps=20, log_every=5, trackers=(), watchdog_seconds=7.0
    )
    changed = toy.with_data(changed, p_concat=0.25)
    with pytest.raises(ValueError, match="another config") as error:
        fit.fit(changed, whole[0], data=toy.Data(config.data), quiet=True)
    message = str(error.value)
    for field in ("train.seed: the run has 0, now 3", "train.steps", "data.p_concat"):
        assert field in message
    for free in ("log_every", "trackers", "watchdog"):  # they change no number
        assert free not in message
    assert load.read_config(whole[0]) == config


def test_a_folder_without_checkpoints_takes_another_config(config, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ValueError, match="names no source"):
        fit.fit(config, folder, quiet=True)
    assert not folder.exists()
    resume.write_config(folder, toy.with_train(config, seed=9))  # as of a run killed early
    resume.check_config(folder, config)


def test_a_truncated_weight_file_stops_before_the_data_are_made(config, tmp_path):
    cut = tmp_path / "moshi.safetensors"
    cut.write_bytes(Path(config.frozen.moshi).read_bytes()[:-100])

    def never(root):
        raise AssertionError(root)

    frozen = dataclasses.replace(config.frozen, moshi=str(cut))
    changed = dataclasses.replace(toy.with_data(config, prepare=never), frozen=frozen)
    with pytest.raises(ValueError, match=str(cut)):
        fit.fit(changed, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_other_frozen_weights_are_refused(whole, config, tmp_path):
    other = toy.write_frozen(tmp_path, seed=6).moshi
    frozen = dataclasses.replace(config.frozen, moshi=other)
    changed = toy.with_train(dataclasses.replace(config, frozen=frozen), steps=20)
    with pytest.raises(ValueError, match=r"frozen\.moshi: expected SHA-256"):
        fit.fit(changed, whole[0], data=toy.Data(config.data), quiet=True, extend=True)


def test_a_damaged_checkpoint_falls_back(whole, config, tmp_path):
    folder = tmp_path / "run"
    fit.fit(config, folder, data=Interrupted(config.data, at=9), quiet=True)
    newest = folder / "checkpoints" / "00000010"
    largest = max(newest.rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    os.truncate(largest, largest.stat().st_size // 2)
    resumed = fit.fit(config, folder, data=toy.Data(config.data), quiet=True)
    assert resumed.finished
    assert (folder / "checkpoints" / "00000010.damaged").is_dir()
    assert_same_run(whole[0], folder)


def test_on_a_full_disk_the_run_goes_on_for_a_while(config, tmp_path, monkeypatch, capsys, quick):
    folder = tmp_path / "run"
    usage = checkpoint.shutil.disk_usage(tmp_path)

    class Full(toy.Data):
        def __getitem__(self, step):
            if step in (2, 9):  # full from before the checkpoint of step 3 to after that of step 9
                space = usage._replace(free=1000) if step == 2 else usage
                monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: space)
            return super().__getitem__(step)

    config = toy.with_train(config, checkpoint_every=3, max_failed_saves=4)
    assert fit.fit(config, folder, data=Full(config.data)).finished
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["00000012"]
    told = capsys.readouterr().err
    assert told.count("the disk has 1,000 free") == 3 and "3 failed in a row" in told
    config = toy.with_train(config, max_failed_saves=3)
    with pytest.raises(ValueError, match="checkpoint of step 9: .* 1,000 free"):
        fit.fit(config, tmp_path / "other", data=Full(config.data), quiet=True)
    assert metrics(tmp_path / "other")[-1]["step"] == 8


def test_too_many_skipped_batches_end_the_run_with_their_samples(config, tmp_path, quick):
    folder = tmp_path / "run"
    quick |= {2, 5, 6, 7}
    config = toy.with_train(config, max_skipped=3)
    with pytest.raises(ValueError, match="steps 5 to 7: expected finite gradients") as error:
        fit.fit(config, folder, data=toy.Data(config.data), quiet=True)
    assert "step 5, speech: speech-4-0, speech-4-1, speech-4-2, speech-4-3\n" in str(error.value)
    assert "speechless-6-7" in str(error.value)
    found = checkpoint.newest(folder / "checkpoints")
    assert found.metadata["step"] == 8  # it was running when the third was known
    summary = fit.fit(config, folder, data=toy.Data(config.data), quiet=True)
    assert summary.finished and summary.skipped == 4


def test_a_stalled_reader_is_reported(config, tmp_path, capsys, monkeypatch, quick):
    reported, report = threading.Event(), phases.Watchdog._report

    def notice(watchdog, text):
        report(watchdog, text)
        reported.set()

    class Stalled(toy.Data):
        def __getitem__(self, step):
            if step == 6:
                reported.clear()
                assert reported.wait(timeout=300)
            return super().__getitem__(step)

    monkeypatch.setattr(phases.Watchdog, "_report", notice)
    config = toy.with_train(config, watchdog_seconds=0.5)
    fit.fit(config, tmp_path / "run", data=Stalled(config.data))
    told = capsys.readouterr().err
    assert "without a step: waiting for the data of step 7" in told
    assert "the data of step 7: done after" in told


def test_callbacks_are_called_at_their_steps_and_their_metrics_logged(config, tmp_path, quick):
    calls = []

    def ask(step, state):
        calls.append((step, float(state.params["scale"].sum())))
        return {"accuracy": step / 100}

    def sample(step, state):
        (tmp_path / f"{step}.txt").write_text("a sample")

    every = [callbacks.Callback(every=3, call=ask), callbacks.Callback(every=5, call=sample)]
    summary = fit.fit(
        config, tmp_path / "run", data=toy.Data(config.data), callbacks=every, quiet=True
    )
    assert calls == [(step, 3.0) for step in (3, 6, 9, 12)]
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["10.txt", "5.txt"]
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 6, 8, 9, 10, 12]
    logged = {line["step"]: line["accuracy"] for line in lines if "accuracy" in line}
    assert logged == {3: 0.03, 6: 0.06, 9: 0.09, 12: 0.12} and summary.metrics["loss"] == 2.5
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(text.splitlines()[-1])["seconds_callbacks"] > 0


def test_a_callback_that_fails_is_named(config, tmp_path, quick):
    def ask(step, state):
        raise KeyError("seven")

    asking = callbacks.Callback(every=4, call=ask, name="digits")
    with pytest.raises(RuntimeError, match="callback digits failed after step 4: KeyError: 'seven"):
        fit.fit(config, tmp_path, data=toy.Data(config.data), callbacks=[asking], quiet=True)
    with pytest.raises(ValueError, match="callback .*ask: every: expected at least 1, got 0"):
        callbacks.Callback(every=0, call=ask)


def test_a_callback_sees_the_model_and_changes_nothing(whole, config, tmp_path):
    """The state is that of its step, and the run is the one without callbacks, bit for bit."""
    seen = {}

    def look(step, state):
        shapes = tree.merge(*load.shapes(config))
        tree.assert_same_tree(shapes, state.params, place="callback")
        seen[step] = jax.tree.map(np.asarray, state.adapters)

    every = [callbacks.Callback(every=8, call=look)]
    folder = tmp_path / "run"
    fit.fit(config, folder, data=toy.Data(config.data), callbacks=every, quiet=True)
    assert_same_run(whole[0], folder)
    assert list(seen) == [8]


def test_profile(config, tmp_path, capsys, quick):
    fit.fit(config, tmp_path, data=toy.Data(config.data), profile=trace.Span(3, 4))
    assert f"trace of steps 3 to 4: {tmp_path}/profile/0" in capsys.readouterr().err
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
