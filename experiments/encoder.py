"""How fine must the image be, and how many codebooks be trained? Neither is in the paper.

    mvjax sweep experiments/encoder.py --seeds 3 --out runs/encoder
    mvjax train experiments/encoder.py --pick pixels_96 --out runs/pixels_96

Resolutions are those that the encoder is given: pictures are resized, and its positions interpolated, so that
the number of image tokens changes and nothing else. Codebooks are those with a loss; 0 trains text alone.

Hardware and time: two CPU cores, 80 seconds a run; 8 trials.
Expected: fewer tokens cost places and digits; of the codebooks the first carries what is said.
Measured: not yet.
"""

import dataclasses

import gate_ablation

from mvjax.config import schema
from mvjax.config import study as study_lib

TOKENS_A_SIDE = (2, 3, 4, 8)  # 4: as the encoder was trained
CODEBOOKS = (0, 1, 2, 4, 8)  # 2: the recipe's


def sweep() -> dict[str, schema.Config]:
    """The runs by name."""
    run = gate_ablation.base()
    patch = run.model.siglip.patch
    return {
        **{f"pixels_{side * patch}": _resolution(run, side * patch) for side in TOKENS_A_SIDE},
        **{
            f"codebooks_{n}": dataclasses.replace(
                run, loss=dataclasses.replace(run.loss, trained_codebooks=n)
            )
            for n in CODEBOOKS
            if n != run.loss.trained_codebooks
        },
    }


def study() -> study_lib.Study:
    """What they are compared for."""
    return study_lib.Study(
        title="Resolution and codebooks",
        question="What do more image tokens, or more trained codebooks, buy?",
        points=tuple(
            study_lib.Point(name, name.partition("_")[0].replace("pixels", "resolution"))
            for name in sweep()
        ),
        benchmarks=(study_lib.Asked("digits-hard", ("text", "audio"), 144),),
        baseline=f"pixels_{gate_ablation.base().model.siglip.image_size}",
    )


def _resolution(run: schema.Config, pixels: int) -> schema.Config:
    siglip = dataclasses.replace(run.model.siglip, image_size=pixels)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, siglip=siglip))
