"""kyuteye_pt's own code beside ours: parts, whole forward passes, and 200 greedy streaming steps."""

import dataclasses
import types
import unittest.mock

import exported
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import upstream
import yaml

from mvjax import gates, scopes
from mvjax.data import images
from mvjax.export import agreement, runtime_configs, weight_files
from mvjax.nn import model as model_lib
from mvjax.runtimes.jax import model as jax_model

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

PT = upstream.kyuteye_pt()
torch = pytest.importorskip("torch")

# V=31 C=19 K=7 Q=3: smaller, since nothing is built in; context 8 of 13 frames
SMALL = dataclasses.replace(
    upstream.CONFIG,
    backbone=dataclasses.replace(upstream.CONFIG.backbone, context=8),
    text_vocab=31,
    audio_vocab=19,
    codebooks_out=3,
    delays=(0, 0, 1, 1, 0, 1, 1),
)
B, T = 2, 13
DESIGNS = {
    "no gate": {"gate": None},
    "tanh": {"gate": gates.Constant("tanh")},
    "sigmoid": {"gate": gates.Constant("sigmoid")},
    "conditional tanh": {"gate": gates.Conditional(6, "tanh")},
    "conditional sigmoid": {},
    "shared gate": {"share_gate": True},
    "shared constant gate": {"gate": gates.Constant("sigmoid"), "share_gate": True},
    "nothing shared": {"share": "none"},
    "image tokens of width 16": {"dim": 16},
    "image tokens of the encoder's width": {"dim": 24},
    "image tokens of width 16, nothing shared": {"dim": 16, "share": "none"},
    "layers 0 and 2": {"layers": (0, 2)},
    "layers 1 and 2, nothing shared": {"layers": (1, 2), "share": "none", "dim": 16},
    "layer 1, shared gate": {"layers": (1,), "share_gate": True, "dim": 24},
    "norm of mean squares": {"image_norm": "mean_square"},
    "from frame 3": {"scope": scopes.Scope(start=3)},
    "first 5 frames": {"scope": scopes.Scope(frames=5)},
    "5 frames from frame 3": {"scope": scopes.Scope(start=3, frames=5)},
    "from beyond the end": {"scope": scopes.Scope(start=40)},
}


def design(name: str):
    """A config of `DESIGNS` as kyuteye_pt computes it."""
    fields = DESIGNS[name]
    config = upstream.like("kyuteye_pt", SMALL)
    xa = dataclasses.replace(config.cross_attention, **fields)
    return dataclasses.replace(config, cross_attention=xa)


def build(config, params, folder, *, whole=False):
    """Returns (MoshiVisGen, ImageProjection) through upstream's loader, from files that we write.

    A `whole` sequence is given the image at once, so that the layers have to know where it starts.
    """
    PT.cross_attention.SharedModuleType._instances.clear()  # else shared with the model before
    path = folder / "model.safetensors"
    weight_files.save_exported(path, params, config, "torch")
    upstream_config = runtime_configs.torch_config(config)
    upstream_config["xa_shared"] = (
        config.cross_attention.share == "qkv"
    )  # no export of other designs
    if whole:
        upstream_config["xa_start"] = config.cross_attention.scope.start
    (folder / "model.yaml").write_text(yaml.safe_dump(upstream_config))
    with upstream.siglip_of(PT, config.siglip):
        gen, embedder = PT.loaders.get_moshi_vis(
            PT.config.KyuteyeConfig.from_yml(folder / "model.yaml"),
            str(path),
            device="cpu",
            dtype=torch.float32,
            gen_kwargs={"use_sampling": False, "check": True},
        )
    _assert_every_name_is_used(path, gen.lm_model, embedder)
    return gen, embedder.eval()


def _assert_every_name_is_used(path, lm, embedder):
    """Upstream ignores what it does not know; shared weights stand once in the file."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        written = set(file.keys())
    wanted = set(lm.state_dict()) | {f"image_prefix.{n}" for n in embedder.state_dict()}
    assert written <= wanted
    assert all("cross_attention" in name and "layers.0." not in name for name in wanted - written)


def codes_of(config):
    rng = np.random.default_rng(7)
    ids = rng.integers(0, config.audio_vocab, (B, config.codebooks, T))
    ids[:, 0] = rng.integers(0, config.text_vocab, (B, T))
    ids[0, 2:, 3] = -1
    return ids.astype(np.int32)


@pytest.mark.parametrize("name", list(DESIGNS))
@torch.no_grad()
def test_forward_text(name, tmp_path, compare):
    config = design(name)
    params = upstream.params(config)
    gen, embedder = build(config, params, tmp_path, whole=True)
    pixels = np.stack([images.normalize(upstream.image())] * B)
    pixels[1] = -pixels[1]
    tokens = embedder(torch.tensor(pixels).permute(0, 3, 1, 2))["cross_attention_src"]
    # Upstream has no causal mask of its own: reference 2.4.
    distance = np.arange(T)[:, None] - np.arange(T)[None]
    mask = torch.tensor((distance >= 0) & (distance < config.backbone.window))
    ids = codes_of(config)
    z, logits, gate = gen.lm_model.forward_text(
        torch.tensor(ids).long(), cross_attention_src=tokens, attention_mask=mask
    )

    @jax.jit
    def ours(params):
        run = model_lib.VisionSpeech(config).bind({"params": params})
        tokens = run.project(run.encode_images(jnp.asarray(pixels)))
        z, gate_means = run.hidden(jnp.asarray(ids), run.keys_values(tokens))
        blind, _ = run.hidden(jnp.asarray(ids), None)
        return tokens, z, run.text_logits(z), gate_means, blind

    found = ours(params)
    compare("image tokens", found[0], tokens, 1e-4)
    compare("z", found[1], z, 1e-4)
    compare("text logits", found[2], logits[:, 0], 1e-4)
    seen = np.asarray(config.cross_attention.scope(jnp.arange(T)))
    if config.cross_attention.gate is not None and seen.all():
        compare("gate mean", found[3].mean(), gate, 1e-5)
    moved = np.abs(found[1] - found[4]).max((0, 2)) > 1e-5
    np.testing.assert_array_equal(moved, np.cumsum(seen) > 0)


@torch.no_grad()
def test_keys_and_values_once(tmp_path, compare):
    """Raw image tokens and precomputed keys and values are the same source."""
    config = design("conditional sigmoid")
    gen, embedder = build(config, upstream.params(config), tmp_path)
    pixels = torch.tensor(images.normalize(upstream.image()))[None].permute(0, 3, 1, 2)
    tokens = embedder(pixels)["cross_attention_src"]
    ids = torch.tensor(codes_of(config)[:1, :, :1]).long()
    _, one, _ = gen.lm_model.forward_text(ids, cross_attention_src=tokens)
    _, other, _ = gen.lm_model.forward_text(ids, cross_attention_src=gen.precompte_ca_kv(tokens))
    compare("upstream's two sources", one, other, 1e-5)


def talk(config, params, user, pixels):
    """Returns the frames of our session that is given `user` [U, frames], and shown `pixels`."""
    return agreement.talk(jax_model.JaxModel(config, params), pixels, user)


@torch.no_grad()
def converse(gen, source, user, *, start=0):
    """Returns (text ids, codec frames, text logits, audio logits, gates) of upstream's steps.

    The source is given from frame `start` on, as by its server.
    """
    logits = []
    choose = PT.moshivis.sample_token

    def recorded(x, *rest):
        logits.append(x.reshape(-1).numpy().copy())
        return choose(x, *rest)

    outs = []
    with (
        unittest.mock.patch.object(PT.moshivis, "sample_token", recorded),
        gen.streaming(),
    ):
        for frame, codes in enumerate(user.T):
            seen = source if frame >= start else None
            outs.append(gen.step(torch.tensor(codes).long()[None, :, None], ca_src=seen))
    every = 1 + gen.num_audio_codebooks_out
    assert outs[0][0] is None and len(logits) == every * len(outs)
    spoken = np.stack([tokens[0, :, 0].numpy() for tokens, _ in outs[1:]])
    audio = np.stack([x for i, x in enumerate(logits) if i % every])
    return types.SimpleNamespace(
        text=spoken[:, 0],  # of the call before: reference 5.2
        frames=spoken[:, 1:],
        text_logits=np.stack(logits[::every]),
        audio_logits=audio.reshape(len(outs), every - 1, -1),
        gates=np.array([gate for _, gate in outs[1:]]),
    )


@pytest.mark.parametrize("fields", [{}, {"dim": 16, "layers": (0, 2)}], ids=str)
def test_200_streaming_steps(fields, tmp_path, compare):
    config = upstream.like("kyuteye_pt", **fields)
    params = upstream.params(config)
    gen, embedder = build(config, params, tmp_path)
    pixels = images.normalize(upstream.image())[None]
    user = upstream.user_codes(200)
    with torch.no_grad():
        tokens = embedder(torch.tensor(pixels).permute(0, 3, 1, 2))["cross_attention_src"]
    theirs = converse(gen, gen.precompte_ca_kv(tokens), user)
    ours = talk(config, params, user, pixels)
    compare.same("text ids", [frame.text_token for frame in ours[:-1]], theirs.text)
    compare.same("codec frames", [frame.audio_codes for frame in ours[1:]], theirs.frames)
    compare("text logits", exported.stacked(ours, "text_logits"), theirs.text_logits, 1e-4)
    compare("audio logits", exported.stacked(ours, "audio_logits"), theirs.audio_logits, 1e-4)
    compare("gate activation", [frame.gate for frame in ours[1:]], theirs.gates, 1e-5)
    assert len(np.unique(theirs.text)) > 20 and theirs.gates.std() > 1e-3
    blind = converse(gen, None, user)
    assert np.any(blind.text != theirs.text)


@pytest.mark.parametrize("name", ["from frame 3", "first 5 frames", "5 frames from frame 3"])
def test_scopes_in_streaming_steps(name, tmp_path, compare):
    config = design(name)
    params = upstream.params(config)
    gen, embedder = build(config, params, tmp_path)
    pixels = images.normalize(upstream.image())[None]
    user = upstream.user_codes(T)[:3] % config.audio_vocab
    with torch.no_grad():
        tokens = embedder(torch.tensor(pixels).permute(0, 3, 1, 2))["cross_attention_src"]
    theirs = converse(
        gen, gen.precompte_ca_kv(tokens), user, start=config.cross_attention.scope.start
    )
    ours = talk(config, params, user, pixels)
    compare("text logits", exported.stacked(ours, "text_logits"), theirs.text_logits, 1e-4)
    compare("audio logits", exported.stacked(ours, "audio_logits"), theirs.audio_logits, 1e-4)
    compare("gate activation", [frame.gate for frame in ours[1:]], theirs.gates, 1e-5)
