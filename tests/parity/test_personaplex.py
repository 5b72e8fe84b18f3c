"""PersonaPlex: NVIDIA's runtime with all depth steps, ours with the first eight, after the same prompt."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import families
import jax
import numpy as np
import pytest

from mvjax import tree
from mvjax.runtimes import prompts
from mvjax.runtimes.jax import model as jax_model
from mvjax.weights import frozen_files

PERSONAPLEX = "MVJAX_PERSONAPLEX"
# Mimi's vocabulary, for the codes of silence; a window longer than the test
MODEL = dataclasses.replace(
    families.MODEL,
    audio_vocab=2048,
    backbone=dataclasses.replace(families.MODEL.backbone, context=64),
)
SIZES = {
    name: families.LM_KWARGS[name]
    for name in families.LM_KWARGS
    if name.startswith("depformer_") and name.endswith(("dim", "heads", "layers", "feedforward"))
} | {"dim": 24, "text_card": 37, "num_heads": 2, "num_layers": 3, "context": 64, "dep_q": 16}


@pytest.mark.parity
def test_a_conversation_after_a_voice_and_a_role(compare, tmp_path, monkeypatch):
    if PERSONAPLEX not in os.environ:
        pytest.skip(f"{PERSONAPLEX} names no checkout of https://github.com/NVIDIA/personaplex")
    monkeypatch.setattr(families, "MODEL", MODEL)
    checkpoint = families.write(tmp_path, families.PERSONAPLEX, steps=16)
    rng = np.random.default_rng(0)
    voice, user = (rng.integers(0, 2048, (8, frames)) for frames in (5, 14))
    np.savez(tmp_path / "in.npz", voice=voice, user=user, role=[9, 8, 7, 20], **SIZES)
    script = Path(__file__).with_name("personaplex_session.py")
    names = ("model.safetensors", "in.npz", "out.npz")
    paths = [str(tmp_path / name) for name in names]
    subprocess.run(
        [sys.executable, str(script), os.environ[PERSONAPLEX], *paths],
        env=os.environ | {"NO_TORCH_COMPILE": "1"},
        check=True,
    )
    theirs = np.load(tmp_path / "out.npz")
    tensors = frozen_files.open_weights(checkpoint.frozen, MODEL)
    frozen = {path: np.asarray(tensor[()]) for path, tensor in tensors.items()}
    params = tree.unflatten(tree.flatten(checkpoint.params) | frozen)
    model = jax_model.JaxModel(MODEL, params)
    with jax.default_matmul_precision("highest"):
        prompt = prompts.personaplex(voice, [9, 8, 7, 20])
        session = prompts.Prompted(model.session(probes=True), model.sizes, prompt)
        frames = [session.step(codes) for codes in user.T]
    probes = [frame.probes for frame in frames]
    text, audio = (np.stack([getattr(p, f"{n}_logits") for p in probes]) for n in ("text", "audio"))
    # one frame later, as the acoustic codes: the text of the frame whose codes are complete
    compare.same("text", [f.text_token for f in frames[:-1]], theirs["tokens"][1:, 0])
    compare.same("audio codes", [f.audio_codes for f in frames], theirs["tokens"][:, 1:9])
    for what, ours in (("text", text), ("audio", audio)):
        wanted = theirs[f"{what}_logits"]
        wanted = wanted[:, :8] if what == "audio" else wanted
        compare(f"{what} logits", ours, wanted, 1e-4)
