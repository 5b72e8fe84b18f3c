"""Makes all the digits world's frozen parts, in the order in which they need each other.

    python tools/make_tiny.py          # two hours on two cores; needs `make .venv/.dev`

    tokenizer   seconds     SentencePiece over the digits world's talk
    siglip      2 minutes   image encoder, in big_vision's npz layout
    mimi        40 minutes  audio codec, in Kyutai's layout (one core)
    decoder     15 minutes  of that codec, which keeps its codes (one core)
    moshi       60 minutes  blind speech model, in Kyutai's layout; needs the codec and the tokenizer

Each has a script of its own with its options. Another machine adds floats in another order, and makes other
weights; accuracies are what must come out alike.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PARTS = ("tokenizer", "siglip", "mimi", "decoder", "moshi")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    for part in parser.parse_args().only:
        script = Path(__file__).with_name(f"make_tiny_{part}.py")
        print(f"== {part}", flush=True)
        subprocess.run([sys.executable, str(script)], check=True)


if __name__ == "__main__":
    main()
