"""Where the training stack cannot be imported: steps export folders, talks to one; JSON of what came out.

python without_jax.py FOLDER... [--talk FOLDER]

`--talk` asks a typed question offline, and the server over its socket; `tests/serve` has to be importable.
"""

import argparse
import asyncio
import importlib.abc
import json
import sys
from pathlib import Path

import numpy as np

TRAINING = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "array_record"}
FRAMES = 6


class Refuse(importlib.abc.MetaPathFinder):
    """Makes every import of the training stack an error, also a tentative one."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in TRAINING:
            raise AssertionError(f"{fullname} was imported")
        return None


def converse(folder: Path) -> dict:
    from mvjax.runtimes import interface, loading

    model = loading.open_folder(folder)
    sizes, random = model.sizes, np.random.default_rng(0)
    pixels = random.uniform(-1, 1, (1, sizes.image_size, sizes.image_size, 3)).astype(np.float32)
    user = random.integers(0, sizes.audio_vocab, (FRAMES, sizes.codebooks_user))
    session = model.session(
        model.encode_image(pixels),
        text_sampling=interface.KYUTAI_TEXT,
        audio_sampling=interface.KYUTAI_AUDIO,
    )
    frames = [session.step(codes) for codes in user]
    return {
        "text": [frame.text_token for frame in frames],
        "audio": [frame.audio_codes.tolist() for frame in frames[1:]],
        "gates": [frame.gate for frame in frames],
    }


def talk(folder: Path) -> dict:
    import standin

    from mvjax.config import talking
    from mvjax.runtimes import loading
    from mvjax.serve import asking
    from mvjax.serve import talk as talk_lib

    speaker = loading.open_speaker(folder, minutes=1.0)
    how = talking.TalkConfig(lead_in=0.16, tail=0.16)
    question = talk_lib.Question("hello", asking.spoken("hello", how.voice).ravel())
    done = talk_lib.converse(speaker, [talk_lib.Shown("x", standin.picture()), question], how)

    async def over_the_socket() -> list[int]:
        async with standin.serving(speaker) as (url, _), standin.talking(url) as client:
            client.spoken = False
            await client.send(8, standin.picture())
            await client.say(20, frames=3)
            await client.frames(3)
            return [len(pcm) for pcm in client.heard]

    return {
        "seconds": done.transcript["seconds"],
        "gates": done.transcript["gates"],
        "loudest": float(np.abs(done.assistant).max()),
        "served": asyncio.run(over_the_socket()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--talk", type=Path)
    args = parser.parse_args()
    sys.meta_path.insert(0, Refuse())
    said = {folder.name: converse(folder) for folder in args.folders}
    if args.talk:
        said["talk"] = talk(args.talk)
    said["imported"] = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps(said))


if __name__ == "__main__":
    main()
