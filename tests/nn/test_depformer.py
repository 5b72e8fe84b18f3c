"""The depth transformer against PyPI moshi's, and against itself step by step."""

import dataclasses

import closeness
import jax.numpy as jnp
import numpy as np
import pytest
import toy

RNG = np.random.default_rng(7)
Z = RNG.standard_normal((toy.B, toy.T, 24)).astype(np.float32)


@pytest.mark.parity
def test_teacher_forced_logits_equal_moshi():
    torch = pytest.importorskip("torch")
    twin = pytest.importorskip("moshi_twin").build(toy.params(), toy.MODEL)
    ids = toy.codes()
    ids[0, 1, 2] = ids[1, 0, 3] = -1
    with torch.no_grad():
        want = twin.forward_depformer_training(torch.tensor(ids).long(), torch.tensor(Z))
    got = toy.apply("depth_logits", Z, ids[:, 0], np.moveaxis(ids[:, 1:3], 1, 2))
    closeness.assert_close(np.moveaxis(got, 2, 1), want.numpy())


def test_a_level_depends_on_the_levels_before_it_only():
    ids = toy.codes()
    forced = np.moveaxis(ids[:, 1:3], 1, 2)
    before = toy.apply("depth_logits", Z, ids[:, 0], forced)
    forced = forced.copy()
    forced[:, :, 1] = (forced[:, :, 1] + 1) % toy.MODEL.audio_vocab  # teacher-forced for level 2
    after = toy.apply("depth_logits", Z, ids[:, 0], forced)
    np.testing.assert_array_equal(before[:, :, :2], after[:, :, :2])
    assert np.all(np.abs(before[:, :, 2] - after[:, :, 2]).max(-1) > 1e-3)


def test_variance_norm_is_another_function():
    depformer = dataclasses.replace(toy.MODEL.depformer, norm="variance")
    config = dataclasses.replace(toy.MODEL, depformer=depformer)
    ids = jnp.asarray(toy.codes())
    args = ("depth_logits", Z, ids[:, 0], jnp.moveaxis(ids[:, 1:3], 1, 2))
    other = toy.apply(*args, config=config, weights=toy.params())
    assert np.abs(other - toy.apply(*args)).max() > 1e-3
