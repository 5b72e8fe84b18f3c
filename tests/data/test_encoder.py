import pytest

from mvjax import types
from mvjax.data.speech import encoder


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 100, 1249])
def test_bucket_wastes_a_quarter_at_most(frames):
    found = encoder.bucket(frames * types.FRAME_SAMPLES - 5)
    assert frames <= found <= max(1.25 * frames, frames + 1)
    assert encoder.bucket(found * types.FRAME_SAMPLES) == found


def test_batched_keeps_all_in_order():
    assert list(encoder.batched(iter(range(7)), 3)) == [(0, 1, 2), (3, 4, 5), (6,)]
