"""COCO captions, Karpathy's test split (5,000 images): one written request an image, CIDEr.

    ROOT/coco/dataset_coco.json                              caption_datasets.zip of Karpathy's page
    ROOT/coco/val2014/COCO_val2014_000000391895.jpg          cocodataset.org

Every image is asked "What do you see?". The caption is all that the model writes until it ends its turn. The
references are all human captions of the split as published. `coco_val` is the validation split.
"""

from __future__ import annotations

from mvjax.eval.benchmarks import _captions


class Coco(_captions.WrittenCaptions):
    """CIDEr on the test split."""

    name = "coco"
    split = "test"
