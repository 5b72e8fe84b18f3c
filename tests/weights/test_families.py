"""The Moshi family: sizes and names follow from a folder, and each checkpoint computes as in `moshi`."""

import dataclasses
import functools
import json
import logging
import math

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvjax import files, tree
from mvjax.config import beside_moshi, moshi_keys, schema
from mvjax.nn import model as model_lib
from mvjax.weights import depth_steps, frozen_files, kyutai, rules

T = 9  # longer than the attention window


@functools.partial(jax.jit, static_argnames="model")
def logits(params, codes, *, model: schema.ModelConfig):
    """Text and audio logits of plain Moshi over a whole sequence; compiled once for each model."""
    module = model_lib.VisionSpeech(model)
    out = module.apply({"params": params}, codes, None, depth_codebooks=model.codebooks_out)
    return out.text_logits, out.audio_logits


def loaded(run: schema.Config, checkpoint: families.Checkpoint):
    """The parameters as the run's files hold them, with the adapters that no file holds."""
    tensors = frozen_files.open_weights(run.frozen, run.model)
    flat = tree.flatten(checkpoint.params) | {p: np.asarray(x[()]) for p, x in tensors.items()}
    return tree.unflatten({path: jnp.asarray(leaf) for path, leaf in flat.items()})


def some_codes():
    rng = np.random.default_rng(3)
    codes = rng.integers(0, families.MODEL.audio_vocab, (2, 17, T))
    codes[:, 0] = rng.integers(0, families.MODEL.text_vocab, (2, T))
    return codes.astype(np.int32)


def moshi_logits(lm_kwargs: dict, weights, codes, monkeypatch):
    """The same by the `moshi` package, which loads the file by its own loader."""
    monkeypatch.setenv("NO_TORCH_COMPILE", "1")
    torch = pytest.importorskip("torch")
    loaders = pytest.importorskip("moshi.models.loaders")
    model = loaders.get_moshi_lm(weights, lm_kwargs=lm_kwargs, dtype=torch.float32)
    with torch.no_grad():
        out = model(torch.from_numpy(codes.astype(np.int64)))
    text = out.text_logits[:, 0].numpy()
    return text, np.moveaxis(out.logits.numpy(), 1, 2), np.moveaxis(out.mask.numpy(), 1, 2)


def assert_alike(ours, theirs):
    text, audio = ours
    text_wanted, audio_wanted, valid = theirs
    steps = audio.shape[2]
    audio_wanted, valid = audio_wanted[:, :, :steps], valid[:, :, :steps]
    largest = max(np.abs(text_wanted).max(), np.abs(audio_wanted[valid]).max())
    assert largest > 1
    assert np.abs(text - text_wanted).max() < 1e-4 * largest
    assert np.abs(audio - audio_wanted)[valid].max() < 1e-4 * largest


LM = {k: v for k, v in families.LM_KWARGS.items() if k != "depformer_causal"}
OTHERS = {"context": 3, "max_period": 100000.0, "norm": "rms_norm"}
LOADING = {
    "moshika": (families.KYUTAI, {}, LM),
    "moshiko": (families.LM_KWARGS, {}, LM),
    "j-moshi": (families.LM_KWARGS, {"name": "moshi_lm_kwargs.json"}, LM),
    "moshi with the user's depth steps": (
        families.LM_KWARGS | {"dep_q": 16, "depformer_context": 16},
        {"name": "moshi_lm_kwargs.json", "steps": 16},
        LM | {"dep_q": 16},
    ),
    "personaplex": (families.PERSONAPLEX, {"steps": 16}, LM | {"dep_q": 16}),
    "another window, base and norm": (families.KYUTAI | OTHERS, {}, LM | OTHERS),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", LOADING)
def test_a_checkpoint_computes_what_the_moshi_package_computes(name, tmp_path, monkeypatch):
    config, how, lm_kwargs = LOADING[name]
    checkpoint = families.write(tmp_path, config, **how)
    sizes_in_file = config is not families.PERSONAPLEX
    run = families.config(checkpoint, None if sizes_in_file else families.MODEL)
    run = beside_moshi.follow(run)
    codes = some_codes()
    with jax.default_matmul_precision("highest"):
        ours = logits(loaded(run, checkpoint), jnp.asarray(codes), model=run.model)
    ours = tuple(map(np.asarray, ours))
    assert ours[1].shape[2] == 8
    theirs = moshi_logits(lm_kwargs, tmp_path / "model.safetensors", codes, monkeypatch)
    assert_alike(ours, theirs)


@pytest.mark.parametrize("name", LOADING)
def test_sizes_follow_from_a_folder(name, tmp_path):
    config, how, lm_kwargs = LOADING[name]
    checkpoint = families.write(tmp_path, config, **how)
    run = beside_moshi.follow(families.config(checkpoint))
    if config is families.PERSONAPLEX:  # names no sizes: Moshi's, with the assistant's codebooks
        assert run.model.backbone == schema.BackboneConfig()
        assert run.model.codebooks_out == 8
    else:
        eps = 1e-5 if config["norm"] == "rms_norm" else 1e-8
        backbone = dataclasses.replace(
            families.MODEL.backbone,
            context=lm_kwargs["context"],
            rope_base=float(lm_kwargs["max_period"]),
            norm_eps=eps,
        )
        depformer = dataclasses.replace(families.MODEL.depformer, norm_eps=eps)
        wanted = dataclasses.replace(families.MODEL, backbone=backbone, depformer=depformer)
        assert run.model == wanted
        assert beside_moshi.follow(run) == run  # as a resumed run reads it again
    assert run.frozen.codec == str(tmp_path / families.CODEC)
    assert run.frozen.tokenizer == str(tmp_path / families.TOKENIZER)


def test_without_a_config_all_is_as_the_experiment_says(tmp_path):
    checkpoint = families.write(tmp_path, None)
    run = families.config(checkpoint, families.MODEL)
    followed = beside_moshi.follow(run)
    assert followed.model == families.MODEL
    assert followed.frozen.moshi == str(tmp_path)
    assert followed.frozen.codec == str(tmp_path / families.CODEC)
    assert beside_moshi.read("package:mvjax.digits/assets/moshi.safetensors") is None
    (tmp_path / families.CODEC).unlink()  # so nothing of the usual name lies there
    assert beside_moshi.follow(run).frozen.codec == ""
    folder = schema.Config(frozen=schema.FrozenFiles(str(tmp_path / "not yet there"), "s"))
    assert beside_moshi.follow(folder) == folder
    with pytest.raises(ValueError, match="got an empty one: .* Check frozen.moshi"):
        files.resolve(folder.frozen.codec)


def test_files_have_the_names_of_the_config(tmp_path):
    named = {"moshi_name": "model.q8.safetensors", "mimi_name": "mimi.safetensors"}
    named["tokenizer_name"] = "tokenizer_ja.model"
    checkpoint = families.write(
        tmp_path / "hub",
        families.KYUTAI | named,
        weights="model.q8.safetensors",
        codec="mimi.safetensors",
        tokenizer="tokenizer_ja.model",
    )
    run = beside_moshi.follow(families.config(checkpoint))
    assert run.frozen.moshi == str(tmp_path / "hub/model.q8.safetensors")
    assert run.frozen.codec == str(tmp_path / "hub/mimi.safetensors")
    assert run.frozen.tokenizer == str(tmp_path / "hub/tokenizer_ja.model")
    assert len(frozen_files.paths(run.frozen)["moshi"]) == 1
    own = dataclasses.replace(checkpoint.frozen, codec="other", tokenizer="words")
    kept = beside_moshi.follow(dataclasses.replace(run, frozen=own)).frozen
    assert (kept.codec, kept.tokenizer) == ("other", "words")
    # a fine-tune that names its base, and its LoRA beside it
    (tmp_path / "lora").mkdir()
    base = "hf://kyutai/moshika-pytorch-bf16/model.safetensors"
    names = {"moshi_name": base, "lora": True, "lora_name": "lora.safetensors"}
    (tmp_path / "lora/config.json").write_text(json.dumps(families.KYUTAI | names))
    tuned = dataclasses.replace(checkpoint.frozen, moshi=str(tmp_path / "lora"))
    followed = beside_moshi.follow(dataclasses.replace(run, frozen=tuned)).frozen
    assert (followed.moshi, followed.moshi_lora) == (base, str(tmp_path / "lora/lora.safetensors"))


def test_what_contradicts_the_experiment_is_refused_by_key(tmp_path):
    checkpoint = families.write(
        tmp_path, families.KYUTAI | {"max_period": 100000.0, "context": 250}
    )
    backbone = dataclasses.replace(families.MODEL.backbone, context=5, rope_base=5000.0)
    run = families.config(checkpoint, dataclasses.replace(families.MODEL, backbone=backbone))
    for refuse in (
        lambda: beside_moshi.follow(run),
        lambda: frozen_files.open_weights(run.frozen, run.model),
    ):
        with pytest.raises(
            ValueError, match=r"contradicts the experiment:\n  context: makes"
        ) as error:
            refuse()
        listed = [line.strip() for line in str(error.value).splitlines()[1:-1]]
        assert listed == [
            "context: makes model.backbone.context 250, and the experiment says 5",
            "max_period: makes model.backbone.rope_base 100000.0, and the experiment says 5000.0",
        ]
    # the default says nothing, unless it was set by hand
    unsaid = families.config(checkpoint)
    assert beside_moshi.follow(unsaid).model.backbone.rope_base == 100000.0
    with pytest.raises(ValueError, match="rope_base 100000.0, and the experiment says 10000.0"):
        beside_moshi.follow(unsaid, said=["model.backbone.rope_base"])
    with pytest.raises(ValueError, match="context 250, and the experiment says 3000"):
        beside_moshi.follow(unsaid, said=["model.backbone"])


def test_damaged_and_contradicting_configs_are_named(tmp_path):
    families.write(tmp_path, families.KYUTAI)
    (tmp_path / "moshi_lm_kwargs.json").write_text(json.dumps(families.LM_KWARGS | {"context": 7}))
    with pytest.raises(ValueError, match=r"moshi_lm_kwargs\.json: contradicts .*config\.json in"):
        beside_moshi.read(str(tmp_path))
    (tmp_path / "moshi_lm_kwargs.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"kwargs\.json: expected a JSON object, got \[1\]"):
        beside_moshi.read(str(tmp_path))
    (tmp_path / "config.json").write_bytes(b'{"dim": \xff')
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        beside_moshi.read(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({f"key{k}": k for k in range(40)}))
    (tmp_path / "moshi_lm_kwargs.json").unlink()
    with pytest.raises(
        ValueError, match=r"(?s)40 keys .*\n  \.\.\. and 20 more\nIf this is another"
    ):
        beside_moshi.read(str(tmp_path))


def test_personaplex_at_full_size_has_the_published_tensors():
    """NVIDIA's file: 475 tensors, 16,742,874,000 bytes, 2 for each parameter and some for the header."""
    whole = schema.ModelConfig(codebooks_out=16)
    shapes = rules.tensor_shapes(kyutai.moshi_rules(whole), kyutai.sizes(whole))
    tensors = {name: Shaped(shape) for name, shape in shapes.items()}
    assert len(tensors) == 475
    header = 16_742_874_000 - 2 * sum(math.prod(shape) for shape in shapes.values())
    assert 100 * 475 < header < 130 * 475
    assert shapes["depformer.layers.5.self_attn.in_proj_weight"] == (49152, 1024)
    assert shapes["depformer.layers.0.self_attn.out_proj.weight"] == (16384, 1024)
    model = moshi_keys.PRESETS["personaplex-7b-v1"]
    kept = depth_steps.assistant(tensors, model, place="x")
    wanted = rules.tensor_shapes(kyutai.moshi_rules(model), kyutai.sizes(model))
    assert {name: tuple(x.shape) for name, x in kept.items()} == wanted
    assert len(wanted) == 355


@dataclasses.dataclass(frozen=True)
class Shaped:
    """A tensor that cannot be read."""

    shape: tuple[int, ...]
    dtype: np.dtype = np.dtype(np.float32)

    def __getitem__(self, index):
        raise AssertionError


def test_the_first_steps_are_taken_with_one_note(tmp_path, caplog):
    checkpoint = families.write(tmp_path, families.PERSONAPLEX, steps=16)
    run = families.config(checkpoint, families.MODEL)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            tensors = frozen_files.open_weights(run.frozen, run.model)
    (note,) = [record.getMessage() for record in caplog.records]
    assert note.endswith(
        "has 16 depth steps, of which the last 8 predict the user; the first 8 are loaded"
    )
    whole = tree.flatten(checkpoint.params)["depformer/blocks/attn/qkv/kernel"]
    np.testing.assert_array_equal(tensors["depformer/blocks/attn/qkv/kernel"][()], whole[:, :8])
