"""OCR-VQA, the validation split; all else as `ocr_vqa`."""

from __future__ import annotations

from mvjax.eval.benchmarks import _book_covers


class OcrVqaVal(_book_covers.WrittenBookCovers):
    """Exact match on the validation split."""

    name = "ocr_vqa_val"
    split = "val"
