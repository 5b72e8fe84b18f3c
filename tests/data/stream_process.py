"""One process of a training run, as far as its data goes: writes what it reads, step by step.

    python stream_process.py ROOT CODEC OUT FIRST LAST INDEX COUNT

One line a row in OUT.INDEX: step, row of the global batch, id (with its crop), hash of its bytes.
"""

import dataclasses
import hashlib
import sys
from pathlib import Path

import toy_records

from mvjax.data import mixture


def main() -> None:
    root, codec, out, *numbers = sys.argv[1:]
    first, last, index, count = map(int, numbers)
    config = toy_records.make_config(Path(root), Path(codec))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, prepare=None))
    batches = mixture.batches(config, process_index=index, process_count=count)
    with open(f"{out}.{index}", "a") as file:
        for step in range(first, last):
            ids, batch = batches.ids(step), batches[step]
            for part in ("speech", "speechless"):
                arrays = getattr(batch, part)
                share = len(arrays.codes)
                for row in range(share):
                    digest = hashlib.sha256(b"".join(x[row].tobytes() for x in arrays)).hexdigest()
                    place = index * share + row
                    file.write(f"{step} {part} {place} {ids[part][row]} {digest}\n")
            file.flush()


if __name__ == "__main__":
    main()
