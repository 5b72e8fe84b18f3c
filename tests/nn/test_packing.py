import jax.numpy as jnp
import numpy as np

from mvjax.nn import packing

SHAPES = ((4, 3), (2, 5))


def test_every_shard_has_its_own_rows_side_by_side():
    parts = [jnp.asarray(10 * np.arange(B)[:, None] + np.arange(T)) for B, T in SHAPES]
    packed = packing.Packing(SHAPES, shards=2)
    rows = packed.pack(parts)
    assert rows.tolist() == [
        [0, 1, 2, 10, 11, 12, 0, 1, 2, 3, 4],
        [20, 21, 22, 30, 31, 32, 10, 11, 12, 13, 14],
    ]
    for found, part in zip(packed.unpack(rows), parts, strict=True):
        np.testing.assert_array_equal(found, part)


def test_a_part_alone_stays_as_it_is():
    part = jnp.arange(12).reshape(4, 3)
    packed = packing.alone(part)
    assert packed.pack([part]) is part and packed.unpack(part)[0] is part
