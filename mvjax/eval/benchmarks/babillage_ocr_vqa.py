"""Babillage's spoken OCR-VQA, the test split (100,424 questions): spoken questions, exact match.

    ROOT/babillage/ocrvqa/test-*.parquet                     kyutai/Babillage of huggingface.co
    ROOT/ocr-vqa/dataset.json, ROOT/ocr-vqa/images/          as for `ocr_vqa`

A row names the cover (image_id), not which of its questions it speaks, and questions are reworded: the
answer is that of the cover's published question that is most like it (`_spoken_book_covers.published`;
ours). The answer is all that the model writes from the end of the question to the end of the tail; it is
scored as in `ocr_vqa`. With text prompts the transcript is asked. `babillage_ocr_vqa_val` is the validation
split.
"""

from __future__ import annotations

from mvjax.eval.benchmarks import _spoken_book_covers


class BabillageOcrVqa(_spoken_book_covers.SpokenBookCovers):
    """Exact match on the test split."""

    name = "babillage_ocr_vqa"
    split = "test"
