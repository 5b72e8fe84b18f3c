"""COCO captions after 0 to 10 turns of small talk: context switching, from other topics to the image.

    ROOT/coco/                                               as for `coco`

The split, request and metric are those of `coco`. The image is in view from the start; the small
talk (`_prefixes`; ours, written for this: the paper does not say which it took) is given as turns of both
sides, drawn for each image by its id, and every image is asked after every prefix. The kinds are "after 0"
to "after 10"; the paper's Figure 5 divides each by "after 0". A limit of N samples asks N / 6 images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mvjax.eval import benchmarks, metrics
from mvjax.eval.benchmarks import _captions, _prefixes


class CocoAfterTalk(_captions.WrittenCaptions):
    """CIDEr of each prefix."""

    name = "coco_after_talk"
    split = "test"
    modes = ("text",)
    overall = "kinds"

    def samples(self, limit: int | None, seed: int) -> Sequence[benchmarks.Sample]:
        """One sample for an image and a prefix."""
        asked = super().samples(_prefixes.questions(limit), seed)
        samples = [
            dataclasses.replace(
                sample,
                id=f"{sample.id}-after-{turns}",
                kind=_prefixes.kind(turns),
                before=_prefixes.small_talk(sample.id, turns),
            )
            for sample in asked
            for turns in _prefixes.TURNS
        ]
        return self.known(samples[:limit])

    def summarized(self, scored: Sequence[metrics.ScoredAnswer]) -> metrics.Summary:
        """As `_prefixes.summary`."""
        return _prefixes.summary(scored, at_most_one=False)

    def columns(self, kind: str) -> dict[str, Any]:
        """Direction and number of turns."""
        return _prefixes.columns(kind, "other to image")
