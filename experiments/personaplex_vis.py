"""Does a backbone with a voice and a role learn to see as Moshi does? MoshiVis's recipe on PersonaPlex 7B.

    hf download nvidia/personaplex-7b-v1 --local-dir weights/personaplex-7b-v1     # accept its license first
    mvjax show experiments/personaplex_vis.py
    mvjax train experiments/personaplex_vis.py --out runs/personaplex_vis

Backbone, codec and tokenizer have Moshi's sizes; of the 16 depth steps the assistant's eight are loaded. Its
config.json names no sizes, so they are the preset's. Everything else is `moshika_vis.py`. When it is
served, voice and role are forced before the conversation: `mvjax/runtimes/prompts.py`.

Hardware and time: as moshika_vis.
Expected: as moshika_vis; whether the voice prompt survives training on one voice is the question.
Measured: not yet.
License: NVIDIA Open Model License; the export's card carries it.
"""

import dataclasses

import moshika_vis

from mvjax.config import moshi_keys, schema


def config() -> schema.Config:
    """The run."""
    run = moshika_vis.config()
    sizes = moshi_keys.PRESETS["personaplex-7b-v1"]
    return dataclasses.replace(
        run,
        frozen=schema.FrozenFiles(
            moshi="weights/personaplex-7b-v1",  # codec and tokenizer lie in it, too
            siglip=run.frozen.siglip,
        ),
        model=dataclasses.replace(sizes, dtype=run.model.dtype),
    )
