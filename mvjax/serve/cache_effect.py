"""What a KV cache of codes does to a model: its logits beside those with a cache in the model's own dtype.

Both hear the same random codes and see the same image. One with its usual cache speaks by greedy decoding,
the other is forced to say the same, so that every frame is compared after the same past.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np

from mvjax.serve import bench


@dataclasses.dataclass(frozen=True)
class Effect:
    """Of a whole conversation; text and audio logits apart.

    Attributes:
      frames: of the conversation.
      context: of the attention window: so many frames a KV cache holds.
      largest: largest difference of a logit, as a share of the largest logit.
      rms: root of the mean square difference, as a share of the root of the mean square logit.
      changed: share of greedy ids that are others.
    """

    frames: int
    context: int
    largest: dict[str, float]
    rms: dict[str, float]
    changed: dict[str, float]

    @property
    def words(self) -> str:
        """A sentence for people."""
        parts = [
            f"{kind} logits at most {self.largest[kind]:.2%} of the largest apart, {self.rms[kind]:.2%} RMS,"
            f" {self.changed[kind]:.2%} of greedy ids changed"
            for kind in _KINDS
        ]
        return f"over {self.frames} frames, of which {self.context} are held: {'; '.join(parts)}"


_KINDS = ("text", "audio")


def measure(model: Any, *, context: int, frames: int | None = None) -> Effect:
    """Returns the effect of `model.kv_cache`; frames: None for a quarter more than the KV cache holds."""
    frames = frames or context + context // 4 + 1
    plain = copy.copy(model)  # of the same weights
    plain.kv_cache = None
    pixels, rng = bench.pixels(model), np.random.default_rng(1)
    one, other = (m.session(m.encode_image(pixels), probes=True) for m in (plain, model))
    told = {kind: _Told() for kind in _KINDS}
    for _ in range(frames):
        codes = rng.integers(0, model.sizes.audio_vocab, model.sizes.codebooks_user, np.int32)
        said = one.step(codes)
        forced = other.step(codes, text=said.text_token, audio=said.audio_tokens)
        for kind, found in told.items():
            found.add(*(getattr(x.probes, f"{kind}_logits") for x in (said, forced)))
    return Effect(
        frames,
        min(context, frames),
        {kind: found.difference / found.largest for kind, found in told.items()},
        {kind: (found.error / found.square) ** 0.5 for kind, found in told.items()},
        {kind: found.changed / found.ids for kind, found in told.items()},
    )


@dataclasses.dataclass
class _Told:
    """Sums over frames."""

    largest: float = 0.0
    difference: float = 0.0
    square: float = 0.0
    error: float = 0.0
    changed: int = 0
    ids: int = 0

    def add(self, plain: np.ndarray, coded: np.ndarray) -> None:
        apart = coded.astype(np.float64) - plain
        self.largest = max(self.largest, float(np.abs(plain).max()))
        self.difference = max(self.difference, float(np.abs(apart).max()))
        self.square += float(np.square(plain, dtype=np.float64).sum())
        self.error += float(np.square(apart).sum())
        others = plain.argmax(-1) != coded.argmax(-1)
        self.changed += int(others.sum())
        self.ids += others.size
