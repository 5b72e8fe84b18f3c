"""Licenses of the frozen parts, from the cards beside them or their publishers, into the export's card."""

import dataclasses

import families
import pytest

from mvjax.config import beside_moshi, schema
from mvjax.export import licenses, model_card


@pytest.fixture
def checkpoint(tmp_path):
    return families.write(tmp_path, families.KYUTAI)


@pytest.fixture
def frozen(checkpoint):
    return beside_moshi.follow(families.config(checkpoint)).frozen


def card(folder, text):
    (folder / "README.md").write_text(f"---\n{text}\n---\n# A card\n")


def test_the_card_beside_a_part_states_its_license(frozen, tmp_path):
    card(tmp_path, "license: cc-by-nc-4.0\nlanguage:\n- ja\nbase_model: x")
    stated = licenses.licenses(frozen)
    assert stated == dict.fromkeys(("moshi", "siglip", "codec", "tokenizer"), "cc-by-nc-4.0")
    assert licenses.languages(frozen.moshi) == ["ja"]
    assert licenses.non_commercial(stated) == ["moshi", "siglip", "codec", "tokenizer"]
    card(
        tmp_path,
        "license: other\nlicense_name: nvidia-open-model-license\nlicense_link: https://x.y",
    )
    assert licenses.licenses(frozen)["moshi"] == "nvidia-open-model-license (https://x.y)"
    card(tmp_path, "license: [")  # a card that cannot be read states nothing
    assert licenses.licenses(frozen)["moshi"] == licenses.UNKNOWN
    assert licenses.licenses(frozen)["codec"] == "cc-by-4.0"  # Kyutai's Mimi by its name


def test_what_publishers_are_known_to_state(tmp_path):
    files = schema.FrozenFiles(
        "hf://nu-dialogue/j-moshi-ext",
        "hf://google/siglip-so400m-patch14-384/model.safetensors",
        "hf://kyutai/moshika-pytorch-bf16@main/mimi.safetensors",
        "package:mvjax.digits/assets/tokenizer.model",
    )
    assert licenses.licenses(files) == {
        "moshi": "cc-by-nc-4.0",
        "siglip": "apache-2.0",
        "codec": "cc-by-4.0",
        "tokenizer": "as mvjax",
    }
    assert licenses.languages(files.moshi) == ["ja"]
    assert licenses.non_commercial(licenses.licenses(files)) == ["moshi"]
    personaplex = families.write(tmp_path, families.PERSONAPLEX, steps=16).frozen
    assert licenses.licenses(personaplex)["moshi"] == "NVIDIA Open Model License"
    assert licenses.licenses(personaplex)["siglip"] == licenses.UNKNOWN


def test_the_exports_card_carries_them(checkpoint, frozen, tmp_path):
    card(tmp_path, "license: cc-by-nc-4.0\nlanguage: ja")
    run = schema.Config(frozen=dataclasses.replace(frozen, lora_scaling=2.0), model=families.MODEL)
    params = checkpoint.params
    text = model_card.text(params, run, "torch", dtype=None, quantization=None, results=None)
    assert "| moshi | `model.safetensors` | cc-by-nc-4.0 |" in text
    assert "**Not for commercial use**, by the license of moshi, siglip, codec, tokenizer." in text
    assert "language:\n- ja\n" in text
    assert "PersonaPlex" not in text  # such widths do not load there
    large = dataclasses.replace(run, model=schema.ModelConfig())
    text = model_card.text(params, large, "torch", dtype=None, quantization=None, results=None)
    assert "PersonaPlex runtime. It has 16 depth steps; given\nthese 8" in text
