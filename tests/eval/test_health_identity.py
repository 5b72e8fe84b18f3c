"""Without an image the adapters change nothing: the tokens of 1,000 frames, to the bit."""

import dataclasses

import jax
import numpy as np
import pytest
import toy

from mvjax import tree
from mvjax.config import schema
from mvjax.eval.health import leak

MODEL = dataclasses.replace(
    toy.MODEL,
    backbone=dataclasses.replace(toy.MODEL.backbone, layers=2),
    depformer=dataclasses.replace(toy.MODEL.depformer, layers=1),
    codebooks_out=2,
    delays=(0, 0, 1, 0, 1),
)


@pytest.mark.slow  # what takes 6 s is to compile it
def test_loaded_adapters_change_no_token_without_an_image():
    adapted = toy.params(MODEL)  # random, and no gate is closed
    adapters, frozen = tree.partition(adapted, schema.TrainConfig().trained)
    assert all(np.abs(leaf).min() > 0 for leaf in tree.flatten(adapters).values())
    plain = tree.merge(jax.tree.map(np.zeros_like, adapters), frozen)
    user = toy.codes(batch=1, frames=leak.IDENTITY_FRAMES, config=MODEL)[0, 1 + 2 :]
    found = leak.identity(MODEL, plain, adapted, user, toy.pixels(batch=1))
    assert found["frames"] == found["equal_text"] == found["equal_audio"] == 1000
    assert found["identical"] and found["max_logit_difference"] == 0
    other = leak.identity(MODEL, toy.params(MODEL, seed=1), adapted, user, toy.pixels(batch=1))
    assert not other["identical"] and other["equal_text"] < 1000
