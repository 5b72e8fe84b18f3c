"""OCR-VQA, the test split (100,429 questions about book covers): written questions, exact match.

    ROOT/ocr-vqa/dataset.json                                ocr-vqa.github.io
    ROOT/ocr-vqa/images/761183272.jpg                        its download script: the covers, by key

The answer is all that the model writes until it ends its turn. It is right if it equals the one given
answer in any case, as in big_vision; the row "letters and digits (ours)" compares letters and digits only,
and is not comparable with published scores. `ocr_vqa_val` is the validation split.
"""

from __future__ import annotations

from mvjax.eval.benchmarks import _book_covers


class OcrVqa(_book_covers.WrittenBookCovers):
    """Exact match on the test split."""

    name = "ocr_vqa"
    split = "test"
