"""KV caches of int8 codes: what is attended to, in every runtime, and what becomes of conversations."""

import dataclasses
from typing import Any

import exported
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from mvjax import tree
from mvjax.commands import bench_models
from mvjax.runtimes import interface, loading
from mvjax.runtimes.jax import kv_cache
from mvjax.runtimes.jax import model as jax_model
from mvjax.serve import cache_effect
from mvjax.train import frozen_dtype

SMALL = dataclasses.replace(
    exported.TOY,
    backbone=dataclasses.replace(exported.TOY.backbone, layers=2),
    depformer=dataclasses.replace(exported.TOY.depformer, layers=1),
    siglip=dataclasses.replace(exported.TOY.siglip, layers=1),
)
WIDE = dataclasses.replace(
    toy.QUANTIZABLE,
    backbone=dataclasses.replace(toy.QUANTIZABLE.backbone, context=6),
    depformer=dataclasses.replace(toy.QUANTIZABLE.depformer, layers=1),
    siglip=dataclasses.replace(toy.QUANTIZABLE.siglip, layers=1),
)
C = SMALL.backbone
N, H, S = C.heads, C.width // C.heads, C.window
FRAMES = 13  # more than twice the ring
PIXELS, USER = exported.inputs(FRAMES)


def in_jax():
    (past, *_) = kv_cache.empty(SMALL, rows=2, dtype=jnp.float32, stored="int8")
    write, attend = jax.jit(kv_cache.write), jax.jit(kv_cache.attend_to_past)

    def step(q, k, v, position):
        nonlocal past
        past = write(past, k, v, position)
        return attend(q, past, position)

    return step


def in_torch():
    torch = pytest.importorskip("torch")
    from mvjax.runtimes.torch import engine

    codes, scale = torch.zeros(2, N, S, H, dtype=torch.int8), torch.zeros(2, N, S)
    past = [codes, scale, codes.clone(), scale.clone()]

    def step(q, k, v, position):
        position = torch.from_numpy(position)
        mask = torch.arange(S) <= position[:, None]
        cache = engine._Cache([past], position % S, None, mask)
        return cache.attend(0, *map(torch.from_numpy, (q, k, v)))[:, :, 0]

    return step


def in_mlx():
    mx = pytest.importorskip("mlx.core")
    from mvjax.runtimes.mlx import engine

    specs = [((2, N, S, H), mx.int8), ((2, N, S), mx.float32)] * 2
    past = [mx.zeros(*spec) for spec in specs]

    def step(q, k, v, position):
        nonlocal past
        cache = engine._Cache(past, mx.array(position), S, each=4)
        u, past = cache.attend(0, *map(mx.array, (q, k, v)))[:, :, 0], cache.past
        return u

    return step


def rounded(x):
    """As is defined: 255 steps between the largest magnitude of a vector and its negative, in float64."""
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    return np.round(x / scale).astype(np.float64) * scale


def attended(q, k, v):
    p = np.exp(k.astype(np.float64) @ q * H**-0.5)
    return p @ v / p.sum()


@pytest.mark.parametrize("runtime", [in_jax, in_torch, in_mlx])
def test_rows_attend_to_rounded_keys_and_values_of_their_own_past(runtime):
    """Each at a position of its own, around the ring; in one head keys are a thousand times the other's."""
    rng, step = np.random.default_rng(0), runtime()
    k, v = rng.standard_normal((2, 2, FRAMES, N, H)).astype(np.float32) * [[[[1.0], [1e-3]]]]
    k, v, q = (x.astype(np.float32) for x in (k, v, rng.standard_normal((2, FRAMES, N, H)) * 2))
    exact = 0.0
    for call in range(FRAMES):
        position = np.array([call, call // 2], np.int32)
        given = (x[[0, 1], position] for x in (q, k, v))
        got = np.asarray(step(*given, position))
        for row, last in enumerate(position):
            past = slice(max(0, last + 1 - S), last + 1)
            for head in range(N):
                seen = k[row, past, head], v[row, past, head]
                want = attended(q[row, last, head], *map(rounded, seen))
                np.testing.assert_allclose(
                    got[row, head], want, atol=1e-5 * np.abs(v[:, :, head]).max()
                )
                exact = max(
                    exact, np.abs(got[row, head] - attended(q[row, last, head], *seen)).max()
                )
    assert exact > 1e-3  # it is the rounded past that they attend to


def test_a_long_ring_is_read_head_by_head_and_never_whole_as_floats():
    rng, size = np.random.default_rng(0), 1600
    q, k, v = (rng.standard_normal((8, n, 64), np.float32) for n in (1, size, size))
    scales = [np.abs(x).max(-1) / np.float32(127) for x in (k, v)]
    codes = [np.round(x / scale[..., None]).astype(np.int8) for x, scale in zip((k, v), scales)]
    held = kv_cache.Held(*map(jnp.asarray, (*codes, *scales)))
    attend = jax.jit(kv_cache.attend_to_past).lower(
        jnp.asarray(q.reshape(2, 4, 64)), held, jnp.zeros(2, jnp.int32)
    )
    attend: Any = attend.compile()
    assert attend.memory_analysis().temp_size_in_bytes < k.nbytes / 2
    for last in (0, 126, 128, 511, 513, 1599, 4000):
        position = jnp.array([last, last // 2], jnp.int32)
        u = attend(jnp.asarray(q.reshape(2, 4, 64)), held, position)
        for head in range(8):
            seen = slice(min(int(position[head // 4]) + 1, size))
            past = (c[head, seen] * s[head, seen, None] for c, s in zip(codes, scales))
            p = np.exp(next(past).astype(np.float64) @ q[head, 0] / 8)
            np.testing.assert_allclose(u[head // 4, head % 4], p @ next(past) / p.sum(), atol=1e-5)


@pytest.fixture(scope="module", params=["jax", "torch", "mlx"])
def model(request, tmp_path_factory):
    if request.param == "jax":
        return jax_model.JaxModel(SMALL, exported.random_params(SMALL), kv_cache="int8")
    folder = exported.write(SMALL, request.param, tmp_path_factory.mktemp("export"))[1]
    pytest.importorskip("mlx.core" if request.param == "mlx" else "torch")
    return loading.open_folder(folder, kv_cache="int8")


def assert_equal(one, other):
    assert len(one) == len(other) > S
    for a, b in zip(one, other):
        assert a.text_token == b.text_token
        for name in ("text_logits", "audio_logits", "hidden"):
            pair = getattr(a.probes, name), getattr(b.probes, name)
            np.testing.assert_array_equal(*pair, err_msg=name)


def test_conversations_do_not_depend_on_each_other_nor_on_what_was_before(model):
    """To the bit, around the ring: beside another one or none, in a slot of its own or one that was used."""
    image, alone = model.encode_image(PIXELS), model.slots(2, probes=True)
    alone.join(image)
    first = [alone.step({0: interface.Turn(codes)})[0] for codes in USER.T]
    alone.reset(0)
    assert_equal(first, [alone.step({0: interface.Turn(codes)})[0] for codes in USER.T])
    slots, said = model.slots(2, probes=True), []
    assert (slots.join(image), slots.join(model.encode_image(-PIXELS))) == (0, 1)
    for call, codes in enumerate(USER.T):
        turns = {0: interface.Turn(codes)}
        if call % 3:  # at another position
            turns[1] = interface.Turn(USER[:, -1 - call])
        said.append(slots.step(turns)[0])
    assert_equal(first, said)


def test_the_effect_on_logits_is_that_of_rounding(model):
    found = cache_effect.measure(model, context=S)
    assert (found.frames, found.context) == (7, S)
    for kind in ("text", "audio"):
        assert 1e-5 < found.rms[kind] < 0.05 and 1e-5 < found.largest[kind] < 0.05
        assert found.changed[kind] < 0.2
    assert "text logits at most" in found.words and model.kv_cache == "int8"
    model.kv_cache = None
    nothing = cache_effect.measure(model, context=S, frames=3)
    assert set(nothing.largest.values()) == set(nothing.changed.values()) == {0.0}
    model.kv_cache = "int8"


@pytest.mark.slow
def test_in_jax_in_bfloat16_with_int8_weights():
    leaves = tree.flatten(exported.random_params(SMALL))
    for path in list(leaves):
        if (axes := frozen_dtype.contracted(path)) is not None:
            codes, scale = frozen_dtype.quantize(jnp.asarray(leaves[path]), axes)
            leaves |= {path: codes, path.removesuffix("kernel") + "scale": scale}
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    model = jax_model.JaxModel(config, tree.unflatten(leaves), kv_cache="int8")
    found = cache_effect.measure(model, context=config.backbone.window)
    assert 0 < found.rms["text"] < 0.05 and 0 < found.largest["text"] < 0.05


def test_in_torch_in_bfloat16_with_int8_weights(tmp_path):
    folder = exported.write(WIDE, "torch", tmp_path, params=toy.quantizable_params(WIDE))[1]
    pytest.importorskip("torch")
    how = {"dtype": "bfloat16", "quantize": "int8", "kv_cache": "int8"}
    opened = bench_models.exported(folder, None, **how)
    assert opened.dtype == "bfloat16, int8 weights, int8 KV cache"
    c, values = WIDE.backbone, opened.values
    found = cache_effect.measure(opened.model, context=c.window)
    assert 0 < found.rms["text"] < 0.05 and 0 < found.largest["text"] < 0.05
    assert values is not None
    vectors, more = 2 * c.heads * c.layers, {"weight": 0.0, "activation": 2.0, "image": False}
    assert (values.past, values.vectors) == (2 * c.width * c.layers, vectors)
    assert values.bytes(slots=3, past=5, cached=1.0, **more) == 15 * (values.past + 4 * vectors)
