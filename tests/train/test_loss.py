import dataclasses

import closeness
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvjax.config import schema
from mvjax.nn import layers
from mvjax.train import loss

MODEL = schema.ModelConfig()  # PAD 3, EPAD 0
SETTINGS = schema.LossConfig()


def nats(logits: np.ndarray, target: int) -> float:
    """Cross-entropy of one target, written out in float64."""
    logits = logits.astype(np.float64)
    return float(np.log(np.sum(np.exp(logits))) - logits[target])


def random_logits(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 3


def test_text_weighs_padding_and_skips_absent_and_masked():
    logits = random_logits(2, 5, 7)
    targets = np.array([[4, 3, 0, -1, 6], [3, 5, -1, 0, 1]], np.int32)
    mask = np.array([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]], bool)
    counted = {(0, 0): 1.0, (0, 1): 0.5, (0, 2): 0.5, (1, 1): 1.0, (1, 3): 0.5, (1, 4): 1.0}
    sums = loss.text(
        jnp.array(logits), jnp.array(targets), jnp.array(mask), model=MODEL, loss=SETTINGS
    )
    expected = sum(w * nats(logits[i], targets[i]) for i, w in counted.items())
    np.testing.assert_allclose(sums.total, expected, rtol=1e-6)
    assert float(sums.weight) == sum(counted.values()) == 4.5


def test_a_mean_over_rows_gives_short_answers_the_weight_of_long_ones():
    logits = jnp.array(random_logits(2, 6, 7))
    targets = np.array([[4, -1, -1, -1, -1, -1], [5, 4, 6, 3, 2, 1]], np.int32)
    by_row = dataclasses.replace(SETTINGS, text_mean_over="rows")
    sums = loss.text(logits, jnp.array(targets), jnp.ones((2, 6), bool), model=MODEL, loss=by_row)
    weights = [1, 1, 1, 0.5, 1, 1]
    long = (
        sum(w * nats(np.asarray(logits)[1, t], targets[1, t]) for t, w in enumerate(weights)) / 5.5
    )
    np.testing.assert_allclose(sums.total, nats(np.asarray(logits)[0, 0], 4) + long, rtol=1e-6)
    np.testing.assert_allclose(sums.weight, 2, rtol=1e-6)


def test_audio_levels_share_one_normalizer_and_end_early_by_their_delay():
    B, T, q, C = 2, 4, 3, 6
    logits = random_logits(B, T, q, C)
    codes = np.random.default_rng(1).integers(0, C, (B, q, T)).astype(np.int32)
    codes[1, :, 0] = -1
    delays = (0, 1, 2)
    total, weight = 0.0, 0.0
    for b in range(B):
        for level, delay in enumerate(delays):
            for t in range(T - delay):
                if codes[b, level, t] != -1:
                    w = 100.0 if level == 0 else 1.0
                    total += w * nats(logits[b, t, level], codes[b, level, t])
                    weight += w
    sums = loss.audio(jnp.array(logits), jnp.array(codes), delays=delays, loss=SETTINGS)
    np.testing.assert_allclose(sums.total, total, rtol=1e-6)
    assert float(sums.weight) == weight == 7 * 100 + 5 + 3


def test_with_equal_frames_the_semantic_level_has_100_of_101_parts():
    logits = random_logits(2, 3, 2, 5)
    codes = np.random.default_rng(1).integers(0, 5, (2, 2, 3)).astype(np.int32)
    sums = loss.audio(jnp.array(logits), jnp.array(codes), delays=(0, 0), loss=SETTINGS)
    means = [
        np.mean([nats(logits[b, t, k], codes[b, k, t]) for b in range(2) for t in range(3)])
        for k in range(2)
    ]
    np.testing.assert_allclose(sums.mean(), (100 * means[0] + means[1]) / 101, rtol=1e-6)


def test_total_is_one_weighted_mean_over_both_parts():
    settings = dataclasses.replace(SETTINGS, text_weight=2.0, audio_weight=3.0)
    speech = loss.PartSums(sums(10, 4), sums(30, 5), loss.zero(3))
    speechless = loss.PartSums(sums(2, 8), loss.zero(), loss.zero(3))
    weights = loss.TargetWeights(jnp.float32(4 + 8), jnp.float32(5))
    value = loss.total(speech, speechless, weights, loss=settings)
    np.testing.assert_allclose(value, 2 * 12 / 12 + 3 * 30 / 5, rtol=1e-6)


def test_parts_of_a_batch_add_up_to_the_whole():
    logits, codes = random_logits(6, 5, 2, 4), np.ones((6, 2, 5), np.int32)
    codes[0], codes[4, 1, 2:] = -1, -1
    whole = loss.audio(jnp.array(logits), jnp.array(codes), delays=(0, 1), loss=SETTINGS)
    halves = [
        loss.audio(jnp.array(logits[i]), jnp.array(codes[i]), delays=(0, 1), loss=SETTINGS)
        for i in (slice(0, 2), slice(2, 6))
    ]
    added = jax.tree.map(jnp.add, *halves)
    np.testing.assert_allclose(added.mean(), whole.mean(), rtol=1e-6)
    # unlike the mean of means
    assert abs(float((halves[0].mean() + halves[1].mean()) / 2 - whole.mean())) > 1e-3


def test_nothing_to_count_is_a_loss_of_zero_with_zero_gradient():
    def value(logits):
        targets = jnp.full((2, 3), -1)
        parts = loss.text(logits, targets, jnp.ones((2, 3), bool), model=MODEL, loss=SETTINGS)
        return parts.mean()

    loss_value, gradient = jax.value_and_grad(value)(jnp.array(random_logits(2, 3, 5)))
    assert float(loss_value) == 0 and not np.any(gradient)


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.array(random_logits(2, 3, 5)).astype(jnp.bfloat16)
    targets = jnp.array([[1, 2, 4], [4, 1, 2]])
    mask = jnp.ones((2, 3), bool)
    rounded = loss.text(logits, targets, mask, model=MODEL, loss=SETTINGS)
    full = loss.text(logits.astype(jnp.float32), targets, mask, model=MODEL, loss=SETTINGS)
    assert rounded.total.dtype == jnp.float32
    np.testing.assert_array_equal(rounded.total, full.total)


def test_wrong_number_of_delays_is_a_bug():
    with pytest.raises(AssertionError):
        loss.audio(jnp.zeros((1, 2, 3, 4)), jnp.zeros((1, 3, 2), int), delays=(0,), loss=SETTINGS)


def sums(total: float, weight: float) -> loss.WeightedSum:
    return loss.WeightedSum(jnp.float32(total), jnp.float32(weight))


def chunk_case(T=11, D=6, V=17, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((2, T, D)).astype(np.float32)
    kernel = rng.standard_normal((D, V)).astype(np.float32)
    targets = rng.integers(-1, V, (2, T)).astype(np.int32)
    return map(jnp.asarray, (z, kernel, targets, rng.random((2, T)) < 0.8))


def whole_and_chunked(targets, mask, frames, scale=None):
    """The loss of (z, kernel), with whole logits and in chunks; neither is 1 / (the number of targets)."""

    def whole(z, kernel):
        weight = kernel if scale is None else kernel.astype(jnp.float32) * scale
        logits = jnp.einsum("BTD,DV->BTV", z, weight)
        return 3 * loss.text(logits, targets, mask, model=MODEL, loss=SETTINGS).mean()

    def chunked(z, kernel):
        head = layers.Weight(kernel, scale)
        return (
            3
            * loss.text_in_chunks(
                z, head, targets, mask, model=MODEL, loss=SETTINGS, chunk=frames
            ).mean()
        )

    return whole, chunked


@pytest.mark.parametrize("frames", [1, 4, 11, 50])
def test_chunks_give_the_loss_and_gradients_of_the_whole(frames):
    z, kernel, targets, mask = chunk_case()
    whole, chunked = whole_and_chunked(targets, mask, frames)
    expected, wanted = jax.value_and_grad(whole, argnums=(0, 1))(z, kernel)
    value, grads = jax.value_and_grad(chunked, argnums=(0, 1))(z, kernel)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(chunked(z, kernel), expected, rtol=1e-6)
    for got, want in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    alone = jax.grad(chunked)(z, kernel)  # as in training: the head is frozen
    np.testing.assert_array_equal(alone, grads[0])


def test_chunks_with_an_int8_head():
    z, kernel, targets, mask = chunk_case()
    codes, scale = jnp.round(kernel * 30).astype(jnp.int8), jnp.full((1, 17), 1 / 30)
    whole, chunked = whole_and_chunked(targets, mask, 4, scale)
    np.testing.assert_allclose(chunked(z, codes), whole(z, codes), rtol=1e-6)
    got, want = (jax.grad(f)(z, codes) for f in (chunked, whole))
    closeness.assert_close(got, want, 1e-6)


def test_chunks_bound_the_memory_and_compute_no_logits_twice():
    z, kernel, targets, mask = chunk_case(T=256, V=2000)
    temporary, products = {}, {}
    for name, f in zip(("whole", "chunked"), whole_and_chunked(targets, mask, 16), strict=True):
        run = jax.jit(jax.value_and_grad(f)).lower(z, kernel)
        temporary[name] = run.compile().memory_analysis().temp_size_in_bytes
        products[name] = run.as_text().count("dot_general")
    logits = 2 * 256 * 2000 * 4
    assert temporary["whole"] > logits
    assert temporary["chunked"] < logits / 4
    assert products["chunked"] == products["whole"] == 2
