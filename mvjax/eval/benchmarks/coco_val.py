"""COCO captions, Karpathy's validation split; all else as `coco`."""

from __future__ import annotations

from mvjax.eval.benchmarks import _captions


class CocoVal(_captions.WrittenCaptions):
    """CIDEr on the validation split."""

    name = "coco_val"
    split = "val"
