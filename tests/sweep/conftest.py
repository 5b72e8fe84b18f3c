"""The toys of tests/data, and what compares checkpoints in tests/train."""

import sys
from pathlib import Path

for room in ("data", "train"):
    sys.path.append(str(Path(__file__).parents[1] / room))
