"""Batches without targets or images are refused, or told, before the first step."""

import dataclasses

import numpy as np
import pytest
import toy

from mvjax import types
from mvjax.config import schema
from mvjax.train import learnable

RUN = toy.planned()


def batch(step=0, **changes):
    """A batch of toy rows; `changes` are fields of both parts, or of `speech` and `speechless`."""
    made = toy.Data(RUN.data)[step]
    parts = {}
    for name in ("speech", "speechless"):
        fields = changes.get(
            name, {k: v for k, v in changes.items() if k not in ("speech", "speechless")}
        )
        part = getattr(made, name)
        values = {k: np.full_like(getattr(part, k), v) for k, v in fields.items()}
        parts[name] = part._replace(**values)
    return types.Batch(**parts)


def check(make, run=RUN):
    said, made = [], []

    def batch_of(number):
        made.append(number)
        return make(number)

    learnable.check(run, batch_of, say=said.append)
    return said, made


def test_one_good_batch_is_enough():
    assert check(batch) == ([], [0])


def test_a_later_batch_may_have_what_the_first_lacks():
    assert check(lambda n: batch(n, has_image=n == 2)) == ([], [0, 1, 2])


def test_of_few_rows_more_batches_are_looked_at():
    few = toy.with_data(RUN, speech_rows=1, speechless_rows=2)
    assert check(lambda n: batch(n, has_image=n == 20), few)[1] == list(range(21))
    (_, made) = check(lambda n: batch(n, speechless={"loss_mask": False}, speech={}), few)
    assert 64 <= 3 * len(made) < 64 + 3


def test_questions_that_fill_the_rows_are_refused():
    silent = dataclasses.replace(RUN, loss=schema.LossConfig(trained_codebooks=0))
    with pytest.raises(
        ValueError, match="first 6 batches have no row with a target: there is noth"
    ):
        check(lambda n: batch(n, loss_mask=False), silent)


def test_records_without_images_are_refused_unless_more_is_trained():
    with pytest.raises(
        ValueError, match="no row with an image: what is trained would have no grad"
    ):
        check(lambda n: batch(n, has_image=False))
    everything = toy.with_train(RUN, trained=(".*",))
    ((said,), _) = check(lambda n: batch(n, has_image=False), everything)
    assert said.startswith("the first 6 batches have no row with an image: is that meant?")


def test_one_part_without_targets_is_told():
    ((said,), made) = check(lambda n: batch(n, speechless={"loss_mask": False}, speech={}))
    assert "no row with a text target in speechless rows: is" in said and made == [0, 1, 2, 3, 4, 5]


def test_the_weights_of_the_loss_count():
    no_text = dataclasses.replace(RUN, loss=schema.LossConfig(text_weight=0.0))
    with pytest.raises(ValueError, match="no row with a target"):
        check(lambda n: batch(n, codes=-1), no_text)
