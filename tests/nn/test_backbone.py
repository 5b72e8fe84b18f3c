"""The backbone without images against PyPI moshi's transformer."""

import numpy as np
import pytest
import toy

pytestmark = pytest.mark.parity


def test_embeddings_layers_and_text_head_equal_moshi():
    torch = pytest.importorskip("torch")
    twin = pytest.importorskip("moshi_twin").build(toy.params(), toy.MODEL)
    columns = toy.codes(frames=13)  # beyond the context of five
    columns[0, 2:, 3] = -1
    columns[1, 0, 4] = -1
    with torch.no_grad():
        want_z, want_logits = twin.forward_text(torch.tensor(columns).long())
    z, gate_means = toy.apply("hidden", columns, None)
    np.testing.assert_allclose(z, want_z.numpy(), atol=1e-4)
    assert not np.any(gate_means)
    logits = toy.apply("text_logits", want_z.numpy())
    np.testing.assert_allclose(logits, want_logits[:, 0].numpy(), atol=1e-5)


def test_frame_by_frame_equals_moshi_streaming():
    torch = pytest.importorskip("torch")
    twin = pytest.importorskip("moshi_twin").build(toy.params(), toy.MODEL)
    columns = toy.codes(frames=13)
    z, _ = toy.apply("hidden", columns, None)
    with torch.no_grad(), twin.streaming(toy.B):
        for t in range(13):
            ids = torch.tensor(columns[:, :, t : t + 1]).long()
            want, _ = twin.forward_text(ids)
            np.testing.assert_allclose(z[:, t], want[:, 0].numpy(), atol=1e-4)
