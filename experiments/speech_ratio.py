"""How much speech does it take to see in a spoken conversation? The paper's figure 4, in the digits world.

    mvjax sweep experiments/speech_ratio.py --seeds 3 --out runs/speech_ratio
    mvjax train experiments/speech_ratio.py --pick speech_25 --out runs/speech_25

Every trial trains on 20 rows a step, speech rows among them in the ratio. Each ratio is exact but 1%,
which is less than a row: by `data.speech_every` one speech row comes in every fifth step and is absent in the
others, so that it is 1 row of 96, 1.04%. The ratio is one of rows, not of frames: a speech row is a window of
64 frames, a speechless row up to 32 tokens. The audio loss is a mean over audio targets, so its weight does
not fall with the ratio; at 0% there is none.

Hardware and time: two CPU cores, about a minute a run; 24 runs.
Expected (paper): audio scores rise fast up to 10-25% and flatten; text scores collapse at 100%.
Measured (docs/results): written questions as in the paper, 95 to 100% up to 25% speech, 52% at 100%. Spoken
ones not: 83% without a speech row, 57% at 5%, 70 to 73% from 10 to 50%, 64% at 100%. Adapters that only read
serve speech in this world, too; in 200 steps a little speech unsettles more than it teaches.
"""

import dataclasses

from mvjax.config import schema
from mvjax.config import study as study_lib
from mvjax.digits import recipe

ROWS = 20
# percent: (speech rows, steps from one with speech to the next)
RATIOS = {0: (0, 1), 1: (1, 5), 5: (1, 1), 10: (2, 1), 25: (5, 1), 50: (10, 1), 75: (15, 1)}
RATIOS[100] = (20, 1)


def sweep() -> dict[str, schema.Config]:
    """The runs by name."""
    return {f"speech_{percent}": _ratio(*counts) for percent, counts in RATIOS.items()}


def study() -> study_lib.Study:
    """What they are compared for."""
    return study_lib.Study(
        title="Speech ratio",
        question="How do scores of written and spoken questions depend on the share of speech rows?",
        expected="Audio scores rise fast to 10-25% and flatten; text scores collapse at 100%.",
        plot="curve",
        x_label="speech rows, % of all rows",
        points=tuple(
            study_lib.Point(f"speech_{percent}", "digits", float(percent)) for percent in RATIOS
        ),
        benchmarks=(study_lib.Asked("digits", ("text", "audio"), 96),),
        paper="speech_ratio",
        baseline="speech_25",
    )


def _ratio(speech_rows: int, every: int) -> schema.Config:
    run = recipe.digits()
    data = dataclasses.replace(
        run.data,
        speech_rows=speech_rows,
        speechless_rows=ROWS - speech_rows,
        speech_every=every,
        speech_frames=64,
        p_concat=0.0,
    )
    train = dataclasses.replace(run.train, steps=200)
    return dataclasses.replace(run, data=data, train=train)
