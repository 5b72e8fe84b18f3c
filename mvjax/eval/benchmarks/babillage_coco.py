"""Babillage's spoken COCO, Karpathy's test split (5,000 images): spoken requests, CIDEr.

    ROOT/babillage/coco/test-*.parquet                       kyutai/Babillage of huggingface.co
    ROOT/coco/dataset_coco.json, ROOT/coco/val2014/          as for `coco`

Babillage has a request for each human caption, about five an image. CIDEr takes one caption an image: here
the answer to the request with the lowest sample_id. The caption is all that the model writes from the end
of the request to the end of the tail; the references are the human captions as for `coco`. With text
prompts the transcript of the same request is asked. `babillage_coco_val` is the validation split.
"""

from __future__ import annotations

from mvjax.eval.benchmarks import _spoken_captions


class BabillageCoco(_spoken_captions.SpokenCaptions):
    """CIDEr on the test split."""

    name = "babillage_coco"
    split = "test"
