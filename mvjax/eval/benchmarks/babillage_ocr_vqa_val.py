"""Babillage's spoken OCR-VQA, the validation split; all else as `babillage_ocr_vqa`."""

from __future__ import annotations

from mvjax.eval.benchmarks import _spoken_book_covers


class BabillageOcrVqaVal(_spoken_book_covers.SpokenBookCovers):
    """Exact match on the validation split."""

    name = "babillage_ocr_vqa_val"
    split = "val"
