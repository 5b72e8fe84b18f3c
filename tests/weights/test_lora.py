"""LoRA files of moshi-finetune: the sums of the `moshi` package, its scaling, and misfits named."""

import json

import closeness
import jax
import ml_dtypes
import numpy as np
import pytest
import toy

from mvjax import tree
from mvjax.weights import kyutai, lora, safetensors_io

CONFIG = toy.MODEL
PARAMS = jax.tree.map(np.asarray, toy.params())
SCALING = 1.5
MERGED = 1e-6  # of the largest: one product of rank 2 and a sum
QKV, OUT = "backbone/blocks/attn/qkv/kernel", "backbone/blocks/attn/out/kernel"


def base_file(folder):
    path = folder / "model.safetensors"
    kyutai.save_moshi(path, PARAMS, CONFIG)
    return path


def factors(name, rows, columns, *, rank=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        f"{name}.lora_A.weight": rng.standard_normal((rank, columns)).astype("f"),
        f"{name}.lora_B.weight": rng.standard_normal((rows, rank)).astype("f"),
    }


@pytest.mark.parity
def test_every_weight_is_the_one_that_moshi_merges(tmp_path):
    torch = pytest.importorskip("torch")
    lora_lib = pytest.importorskip("moshi.modules.lora")
    twin = pytest.importorskip("moshi_twin").build(PARAMS, CONFIG)
    lora_lib.replace_all_linear_with_lora(twin, 2, SCALING)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in twin.named_parameters():
        if "lora" in name or "emb" in name:  # embeddings too, as with `ft_embed`
            with torch.no_grad():
                parameter.normal_(generator=generator)
    state = {name: tensor.detach().numpy() for name, tensor in twin.state_dict().items()}
    written = {n: t for n, t in state.items() if "lora" in n or "emb" in n}
    assert "linears.2.lora_B.weight" in written and "emb.3.weight" in written
    safetensors_io.write(tmp_path / "lora.safetensors", written)
    (tmp_path / "config.json").write_text(json.dumps({"lora_rank": 2, "lora_scaling": SCALING}))
    found = kyutai.open_moshi(base_file(tmp_path), CONFIG, lora_path=tmp_path)
    with torch.no_grad():
        lora_lib.replace_lora_with_linear(twin)
    merged = {name: tensor.numpy() for name, tensor in twin.state_dict().items()}
    safetensors_io.write(tmp_path / "merged.safetensors", merged)
    expected = tree.flatten(kyutai.load_moshi(tmp_path / "merged.safetensors", CONFIG))
    before = tree.flatten(PARAMS)
    assert found.keys() == expected.keys()
    for path, leaf in found.items():
        closeness.assert_close(leaf[()], expected[path], MERGED, where=path)
        changed = np.abs(expected[path] - before[path]).max() > 0.1
        assert changed == ("norm" not in path), path


def test_parts_of_merged_weights_and_one_rounding(tmp_path):
    base = base_file(tmp_path)
    name = "transformer.layers.1.self_attn.in_projs.0"
    tensors = factors(name, 72, 24)
    safetensors_io.write(tmp_path / "l.safetensors", tensors)
    given = {"lora_path": tmp_path / "l.safetensors", "lora_scaling": SCALING}
    leaf = kyutai.open_moshi(base, CONFIG, **given)[QKV]
    whole = PARAMS["backbone"]["blocks"]["attn"]["qkv"]["kernel"].copy()
    change = SCALING * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    whole[1] += change.T.reshape(24, 3, 4, 6)
    closeness.assert_close(leaf[()], whole, MERGED)
    index = (slice(1, 2), slice(5, 9), slice(None), slice(1, 3))
    closeness.assert_close(leaf[index], whole[index], MERGED)
    rough = kyutai.open_moshi(base, CONFIG, dtype=ml_dtypes.bfloat16, **given)[QKV]
    np.testing.assert_array_equal(rough[()], leaf[()].astype(ml_dtypes.bfloat16))


def test_fused_factors_of_several_steps(tmp_path):
    """As the `moshi` package splits them: steps one after the other along the rows of A and of B."""
    base = base_file(tmp_path)
    parent = "depformer.layers.0.self_attn."
    split = {}
    for step in range(3):
        split |= factors(f"{parent}in_projs.{step}", 48, 16, seed=step)
    fused = {
        f"{parent}in_proj.lora_{half}.weight": np.concatenate(
            [split[f"{parent}in_projs.{s}.lora_{half}.weight"] for s in range(3)]
        )
        for half in "AB"
    }
    path = "depformer/blocks/attn/qkv/kernel"
    found = []
    for name, tensors in (("split", split), ("fused", fused)):
        file = tmp_path / f"{name}.safetensors"
        safetensors_io.write(file, tensors)
        leaf = kyutai.open_moshi(base, CONFIG, lora_path=file, lora_scaling=SCALING)[path]
        found.append(leaf[()])
    np.testing.assert_array_equal(*found)
    change = SCALING * split[f"{parent}in_projs.2.lora_B.weight"]
    change = change @ split[f"{parent}in_projs.2.lora_A.weight"]
    before = PARAMS["depformer"]["blocks"]["attn"]["qkv"]["kernel"][0, 2]
    closeness.assert_close(found[0][0, 2], before + change.T.reshape(16, 3, 2, 8), MERGED)


def test_misfits_are_all_named(tmp_path):
    base = base_file(tmp_path)
    out = "transformer.layers.0.self_attn.out_projs.0"
    tensors = (
        factors("no.such", 4, 5)
        | factors(out, 25, 24)
        | factors("out_norm", 24, 24)
        | factors("text_linear", 34, 24)
        | {"other.weight": np.zeros(3, np.float32)}
    )
    del tensors["text_linear.lora_A.weight"]
    path = tmp_path / "l.safetensors"
    safetensors_io.write(path, tensors)
    with pytest.raises(ValueError, match=r"l\.safetensors: 5 tensors") as error:
        kyutai.open_moshi(base, CONFIG, lora_path=path, lora_scaling=1.0)
    for line in (
        "other.weight: no such weight in the base",
        "no.such.weight: no such weight in the base",
        "out_norm.weight: no such weight in the base",
        "self_attn.out_proj.weight: a part is [24, 24], got A [2, 24] and B [25, 2]",
        "text_linear.weight: expected A and B of the same steps, got [], [0]",
    ):
        assert line in str(error.value)


def test_a_file_without_factors_or_scaling_is_refused(tmp_path):
    base = base_file(tmp_path)
    path = tmp_path / "l.safetensors"
    safetensors_io.write(path, {"text_linear.weight": np.zeros((34, 24), np.float32)})
    with pytest.raises(ValueError, match=r"l\.safetensors(.|\n)*\.lora_A\.weight(.|\n)*found none"):
        kyutai.open_moshi(base, CONFIG, lora_path=path, lora_scaling=1.0)
    with pytest.raises(ValueError, match=r"expected lora_scaling in .*config\.json.*set frozen"):
        kyutai.open_moshi(base, CONFIG, lora_path=path)


def test_a_base_weight_that_is_no_matrix_is_named(tmp_path):
    path = tmp_path / "l.safetensors"
    safetensors_io.write(path, factors("linear", 5, 4))
    with pytest.raises(
        ValueError, match=r"linear\.weight: expected a matrix in the base, got \[5\]"
    ):
        lora.merged({"linear.weight": np.zeros(5, np.float32)}, path, factor=1.0)
