"""Which design learns more from the same few minutes? The hard digits world, for comparisons.

Two to four digits in a picture, scribbles between them, noise; questions that refer ("what digit is red"),
relate ("which digit is left of the seven"), count and add (`mvjax.digits.hard`).

    mvjax train experiments/digits_hard.py --out runs/hard
    mvjax eval runs/hard --benchmark digits-hard
    mvjax eval runs/hard --benchmark digits-switch --prompt text --prompt blind

Hardware and time: two CPU cores, a minute and a half (119 CPU seconds to train, 18 for written questions, 65
for spoken ones), and once as long for the records, which all runs share.
Measured: docs/evaluation.md, beside the ceiling and the floor.
"""

from mvjax.config import schema
from mvjax.digits.hard import recipe


def config() -> schema.Config:
    """The run."""
    return recipe.digits_hard()
