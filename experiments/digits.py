"""Can a frozen, blind Moshi learn to see through adapters alone, on a laptop?

The digits world (`mvjax.digits`): scanned digits in colors and places, spoken and written questions about
them, 8 speech and 24 speechless rows a step. The values live in `mvjax/digits/recipe.py`, inside the package,
because the quickstart runs the same ones without this folder.

    mvjax train experiments/digits.py --out runs/digits
    mvjax eval runs/digits

Hardware and time: two CPU cores, a few minutes, records included.
Expected: over the question kinds that need the image at least 90% for text questions and at least 75%
for spoken questions in held-out voices; without the image, or with another question's, near chance.
"""

from mvjax.config import schema
from mvjax.digits import recipe


def config() -> schema.Config:
    """The run."""
    return recipe.digits()
