"""Without an image the adapters change nothing: the tokens of 1,000 frames, to the bit."""

import jax
import numpy as np
import toy

from mvjax import tree
from mvjax.config import schema
from mvjax.eval.health import leak


def test_loaded_adapters_change_no_token_without_an_image():
    adapted = toy.params()  # random, and no gate is closed
    adapters, frozen = tree.partition(adapted, schema.TrainConfig().trained)
    assert all(np.abs(leaf).min() > 0 for leaf in tree.flatten(adapters).values())
    plain = tree.merge(jax.tree.map(np.zeros_like, adapters), frozen)
    user = toy.codes(batch=1, frames=leak.IDENTITY_FRAMES)[0, 1 + toy.MODEL.codebooks_out :]
    found = leak.identity(toy.MODEL, plain, adapted, user, toy.pixels(batch=1))
    assert found["frames"] == found["equal_text"] == found["equal_audio"] == 1000
    assert found["identical"] and found["max_logit_difference"] == 0
    other = leak.identity(toy.MODEL, toy.params(seed=1), adapted, user, toy.pixels(batch=1))
    assert not other["identical"] and other["equal_text"] < 1000
