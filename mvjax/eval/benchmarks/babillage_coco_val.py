"""Babillage's spoken COCO, Karpathy's validation split; all else as `babillage_coco`."""

from __future__ import annotations

from mvjax.eval.benchmarks import _spoken_captions


class BabillageCocoVal(_spoken_captions.SpokenCaptions):
    """CIDEr on the validation split."""

    name = "babillage_coco_val"
    split = "val"
