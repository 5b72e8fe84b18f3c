"""Small records and a dataset of them, for tests of writing and reading."""

import numpy as np

from mvjax.data import images
from mvjax.data.records import dataset

MADE_WITH = dataset.Identity(codec="c" * 64, tokenizer="t" * 64)


def picture(i=0, height=5, width=7):
    rng = np.random.default_rng(i)
    return images.encode_png(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def record(i=0, *, frames=5, codebooks=4, **changes):
    rng = np.random.default_rng(i)
    codes = rng.integers(0, 256, (codebooks, frames))
    fields = {
        "id": f"r{i}",
        "kinds": ("digit",),
        "turns": (dataset.Turn("user", "what is it"), dataset.Turn("assistant", "a seven")),
        "facts": {"digit": 7, "colour": "red", "place": "top left"},
        "image": picture(i),
        "words": (dataset.Word("a", 0.05, 0.1), dataset.Word("seven", 0.1, 0.33)),
        "user_words": (dataset.Word("what", 0.0, 0.02),),
        "codes": dataset.encode_codes(codes),
        "codebooks": codebooks,
        "seconds": frames * 0.08,
    }
    return dataset.Record(**(fields | changes))


def write(folder, items, name="visual", **options):
    path = folder / name
    dataset.write(path, items, MADE_WITH, **options)
    return path
