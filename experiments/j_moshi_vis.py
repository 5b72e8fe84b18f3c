"""Does a Japanese Moshi learn to see, and to say so in Japanese? MoshiVis's recipe on J-Moshi.

    hf download nu-dialogue/j-moshi-ext --local-dir weights/j-moshi-ext
    mvjax show experiments/j_moshi_vis.py
    mvjax train experiments/j_moshi_vis.py --out runs/j_moshi_vis

Sizes are Moshi's; the tokenizer is J-Moshi's own, under the name of the English one, and follows from the
folder. Records have to be made: the dialogues of `moshika_vis.py` in Japanese, spoken by a Japanese
synthesizer, encoded with this experiment (docs/dialogues.md, docs/data.md). Question sets in English
(TallyQA, OCR-VQA, DocVQA, rendered text) are left out.

Hardware and time: as moshika_vis.
Expected: unknown; nobody has published a Japanese model of this kind with results.
Measured: not yet.
License: CC BY-NC 4.0, not for commercial use; the export's card carries it.
"""

import dataclasses

import moshika_vis

from mvjax.config import schema

ENGLISH = ("tallyqa", "ocr_vqa", "rendered_text", "docvqa")


def config() -> schema.Config:
    """The run."""
    run = moshika_vis.config()
    speechless = tuple(one for one in run.data.speechless if one.name not in ENGLISH)
    return dataclasses.replace(
        run,
        frozen=schema.FrozenFiles(
            moshi="weights/j-moshi-ext",  # codec and tokenizer lie in it, too
            siglip=run.frozen.siglip,
        ),
        data=dataclasses.replace(
            run.data, root="data/j_moshi_vis", speechless=speechless, word_spaces=False
        ),
    )
