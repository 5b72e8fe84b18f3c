"""A long conversation: time of a frame and memory, minute by minute; status 1 unless both stay flat.

    python tools/long_session.py DIR [--minutes 30] [--no-codec]

steps a session of an export, with noise through its codec, as fast as it can. Flat: memory at the end
within 1% of that after the second minute, and the 99th percentile of the last minute's frames within 10% of
the second's. The first minute fills caches.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mvjax import types
from mvjax.runtimes import interface, loading

MINUTE = 750  # frames


def memory() -> float:
    """Resident memory of this process in MB."""
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) / 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--minutes", type=int, default=30, help="of conversation (%(default)s)")
    parser.add_argument("--no-codec", action="store_true", help="codes in and out")
    args = parser.parse_args()
    table = list(measure(args.folder, args.minutes, codec=not args.no_codec))
    (early, before), (late, after) = table[1], table[-1]
    flat = after <= 1.01 * before and late <= 1.1 * early
    verdict = "flat" if flat else "NOT FLAT"
    print(f"memory {after / before - 1:+.2%}, p99 {late / early - 1:+.1%}: {verdict}")
    return 0 if flat else 1


def measure(folder: Path, count: int, *, codec: bool) -> Iterator[tuple[float, float]]:
    """Yields (99th percentile in ms, memory in MB) of each minute, and prints them."""
    rng = np.random.default_rng(0)
    if codec:
        speaker = loading.open_speaker(folder, minutes=count + 1)
        model, voice = speaker.model, speaker.voice()
    else:
        model, voice = loading.open_folder(folder), None
    sizes = model.sizes
    pixels = rng.uniform(-1, 1, (1, sizes.image_size, sizes.image_size, 3)).astype(np.float32)
    session = model.session(
        model.encode_image(pixels),
        text_sampling=interface.KYUTAI_TEXT,
        audio_sampling=interface.KYUTAI_AUDIO,
    )
    audio = rng.standard_normal((MINUTE, types.FRAME_SAMPLES), np.float32) / 10
    codes = rng.integers(0, sizes.audio_vocab, (MINUTE, sizes.codebooks_user))
    took = np.zeros(MINUTE)
    print("minute  frames  median ms  p99 ms  memory MB")
    for minute in range(1, count + 1):
        for i in range(MINUTE):
            begin = time.perf_counter()
            if voice is None:
                session.step(codes[i])
            else:
                voice.say(session.step(voice.hear(audio[i])))
            took[i] = 1000 * (time.perf_counter() - begin)
        median, p99 = np.percentile(took, (50, 99))
        print(
            f"{minute:6} {minute * MINUTE:7} {median:10.2f} {p99:7.2f} {memory():10.1f}", flush=True
        )
        yield p99, memory()


if __name__ == "__main__":
    sys.exit(main())
