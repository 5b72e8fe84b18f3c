"""Where the training stack cannot be imported: steps export folders, and a codec; JSON of what came out.

python without_jax.py FOLDER... [--codec MIMI]
"""

import argparse
import importlib.abc
import json
import sys
from pathlib import Path

TRAINING = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "array_record"}
FRAMES = 6


class Refuse(importlib.abc.MetaPathFinder):
    """Makes every import of the training stack an error, also a tentative one."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in TRAINING:
            raise AssertionError(f"{fullname} was imported")
        return None


def converse(folder: Path) -> dict:
    import numpy as np

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


def round_trip(path: Path) -> list[int]:
    import numpy as np

    from mvjax.codec import rusty
    from mvjax.config import frozen

    config = frozen.MimiConfig()
    stream = rusty.RustyCodec(path, config).stream()
    audio = np.random.default_rng(0).standard_normal((1, config.frame_samples)).astype(np.float32)
    codes = stream.encode(audio)
    return [*codes.shape, *stream.decode(codes).shape]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--codec", type=Path)
    args = parser.parse_args()
    sys.meta_path.insert(0, Refuse())
    said = {folder.name: converse(folder) for folder in args.folders}
    if args.codec:
        said["codec"] = round_trip(args.codec)
    said["imported"] = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps(said))


if __name__ == "__main__":
    main()
