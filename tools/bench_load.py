"""How much memory and time does loading take? Writes a synthetic Moshi of the real structure, and loads it.

    python tools/bench_load.py FOLDER --gigabytes 4

The files are made once. A fresh process loads them as training does, spread over eight simulated devices
whose memory is this machine's: the arrays themselves count once, the rest of the peak is what loading costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

DEVICES = 8
MOSHI, SIGLIP = "moshi.safetensors", "siglip.npz"
SCALES = (1, 2, 4, 8)  # divisors of the real widths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the files, some GB")
    parser.add_argument("--gigabytes", type=float, default=4.0, help="(%(default)s)")
    parser.add_argument("--part", choices=("write", "load"), help="only one of the two processes")
    args = parser.parse_args()
    if args.part == "write":
        write(args.folder, args.gigabytes)
    elif args.part == "load":
        load(args.folder, args.gigabytes)
    else:  # each in its own process, so that the peak of one is not the other's
        command = [sys.executable, __file__, str(args.folder), "--gigabytes", str(args.gigabytes)]
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}"}
        environment = os.environ | flags | {"JAX_PLATFORMS": "cpu"}
        for part in ("write", "load"):
            subprocess.run([*command, "--part", part], env=environment, check=True)


def make_config(folder: Path, gigabytes: float):
    """The real model's widths over the smallest divisor that leaves four layers, and as many as fit."""
    from mvjax.config import schema

    real = schema.ModelConfig()
    for scale in SCALES:
        backbone = dataclasses.replace(
            real.backbone,
            width=real.backbone.width // scale,
            heads=real.backbone.heads // scale,
            hidden=real.backbone.hidden // scale,
            layers=4,
        )
        depformer = dataclasses.replace(
            real.depformer,
            width=real.depformer.width // scale,
            heads=real.depformer.heads // scale,
            hidden=real.depformer.hidden // scale,
        )
        siglip = dataclasses.replace(real.siglip, layers=2)
        model = dataclasses.replace(
            real, backbone=backbone, depformer=depformer, siglip=siglip, dtype="bfloat16"
        )
        if size(model) <= gigabytes * 1e9:
            break
    more = int((gigabytes * 1e9 - size(model)) / (size(with_layers(model, 5)) - size(model)))
    files = schema.FrozenFiles(str(folder / MOSHI), str(folder / SIGLIP), "", "")
    return schema.Config(
        frozen=files,
        model=with_layers(model, 4 + max(more, 0)),
        mesh=schema.MeshConfig(fsdp=DEVICES),
    )


def with_layers(model, layers: int):
    return dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, layers=layers))


def size(model) -> int:
    """Bytes of Moshi's tensors in bfloat16."""
    import numpy as np

    from mvjax.weights import kyutai, rules

    shapes = rules.tensor_shapes(kyutai.moshi_rules(model), kyutai.sizes(model))
    return 2 * sum(int(np.prod(shape)) for shape in shapes.values())


def write(folder: Path, gigabytes: float) -> None:
    import jax
    import numpy as np

    from mvjax import tree
    from mvjax.train import load as load_lib
    from mvjax.weights import big_vision, kyutai, rules, safetensors_io

    run = make_config(folder, gigabytes)
    described = json.dumps(dataclasses.asdict(run.model), default=str)
    mark = folder / "config.json"
    if mark.is_file() and mark.read_text() == described:
        return
    shapes = rules.tensor_shapes(kyutai.moshi_rules(run.model), kyutai.sizes(run.model))
    folder.mkdir(parents=True, exist_ok=True)
    safetensors_io.write(folder / MOSHI, _Synthetic(shapes))
    encoder = load_lib.shapes(run).frozen["image"]["encoder"]
    filled = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, np.float32), encoder)
    big_vision.save_siglip(folder / SIGLIP, tree.unflatten(tree.flatten(filled)))
    mark.write_text(described)


class _Synthetic(Mapping):
    """{name: bfloat16 values}, made when they are asked for."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        import ml_dtypes
        import numpy as np

        self._shapes = shapes
        self._pool = np.random.default_rng(0).normal(0, 0.02, 2**22 + 1).astype(ml_dtypes.bfloat16)

    def __getitem__(self, name: str):
        import numpy as np

        return np.resize(self._pool, self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def load(folder: Path, gigabytes: float) -> None:
    import jax

    from mvjax.train import load as load_lib
    from mvjax.train import sharding

    run = make_config(folder, gigabytes)
    mesh = sharding.make_mesh(run.mesh)
    stored = sum((folder / name).stat().st_size for name in (MOSHI, SIGLIP))
    before, start = peak_bytes(), time.perf_counter()
    frozen = jax.block_until_ready(load_lib.frozen(run, mesh))
    seconds = time.perf_counter() - start
    held = sum(s.data.nbytes for leaf in jax.tree.leaves(frozen) for s in leaf.addressable_shards)
    peak = peak_bytes()
    print(
        f"{run.model.backbone.layers} layers of width {run.model.backbone.width}, {DEVICES} devices"
    )
    print(f"files {stored / 1e9:.3f} GB; arrays on devices {held / 1e9:.3f} GB; {seconds:.1f} s")
    print(
        f"peak resident memory {peak / 1e9:.3f} GB, of which {before / 1e9:.3f} GB before loading"
    )
    print(f"peak / files: {peak / stored:.3f} ({(peak - before) / stored:.3f} without the start)")


def peak_bytes() -> int:
    """Peak resident memory of this program; on Linux getrusage would count what started it, too."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
