"""How much memory and time do an export and its certificate take? On a synthetic model of the real structure.

    python tools/bench_export.py FOLDER --gigabytes 0.6 --target mlx --quantize q8
    python tools/bench_export.py FOLDER --gigabytes 0.25 --certify

Moshi's files are made once, as `bench_load.py` makes them. A fresh process reads the parameters into memory,
exports them, and says what was needed on top; `--certify` goes on to the certificate.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import bench_load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the files, several times the model")
    parser.add_argument("--gigabytes", type=float, default=0.6, help="of Moshi (%(default)s)")
    parser.add_argument("--target", choices=("torch", "mlx", "candle"), default="torch")
    parser.add_argument("--quantize", choices=("q8", "q4", "q8_0"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--certify", action="store_true", help="make the certificate, too")
    parser.add_argument("--part", choices=("export",), help="only the measured process")
    args = parser.parse_args()
    if args.part is None:
        bench_load.write(args.folder, args.gigabytes)
        command = [sys.executable, __file__, *sys.argv[1:], "--part", "export"]
        subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=True)
        return
    measure(args)


def measure(args: argparse.Namespace) -> None:
    from mvjax import tree
    from mvjax.export import certificate, verdict
    from mvjax.export import folder as export_folder

    run = make_config(args.folder, args.gigabytes)
    params = parameters(run)
    sizes = [leaf.nbytes for leaf in tree.flatten(params).values()]
    how = {"dtype": args.dtype, "quantization": args.quantize}
    out = args.folder / "exported"
    before, start = bench_load.peak_bytes(), time.perf_counter()
    export_folder.export(params, run, args.target, out, **how)
    report("export", before, sizes, time.perf_counter() - start)
    files = sum(file.stat().st_size for file in out.iterdir() if not file.is_symlink())
    print(f"files {files / 1e9:.3f} GB")
    if args.certify:
        start = time.perf_counter()
        made = certificate.certify(params, run, out, args.target, **conversation(run.model), **how)
        report("certificate", before, sizes, time.perf_counter() - start)
        print(verdict.summary(made))


def report(what: str, before: int, sizes: list[int], seconds: float) -> None:
    model, peak = sum(sizes), bench_load.peak_bytes()
    print(
        f"{what}: model {model / 1e9:.3f} GB, its largest parameter {max(sizes) / 1e9:.3f} GB;"
        f" {seconds:.1f} s"
    )
    print(
        f"peak resident memory {peak / 1e9:.3f} GB, of which {before / 1e9:.3f} GB before;"
        f" the rest is {(peak - before) / model:.3f} of the model"
    )


def make_config(folder: Path, gigabytes: float):
    """The model of `bench_load`, with gates as the runtimes have them, and a codec to copy."""
    from mvjax import gates

    run = bench_load.make_config(folder, gigabytes)
    (folder / "copied").write_bytes(b"codec or tokenizer")
    adapters = dataclasses.replace(
        run.model.cross_attention,
        gate=gates.Conditional(hidden=run.model.backbone.width // 8),
    )
    files = dataclasses.replace(
        run.frozen, codec=str(folder / "copied"), tokenizer=str(folder / "copied")
    )
    return dataclasses.replace(
        run, model=dataclasses.replace(run.model, cross_attention=adapters), frozen=files
    )


def parameters(run):
    """The whole tree in bfloat16: frozen parameters from the files, random adapters."""
    import ml_dtypes
    import numpy as np

    from mvjax import tree
    from mvjax.train import load as load_lib
    from mvjax.weights import frozen_files

    shapes = load_lib.shapes(run)
    source = frozen_files.open_weights(run.frozen, run.model)
    random = np.random.default_rng(1)
    flat = {
        path: np.ascontiguousarray(source[path][()]).astype(ml_dtypes.bfloat16)
        for path in tree.flatten(shapes.frozen)
    }
    for path, leaf in tree.flatten(shapes.adapters).items():
        values = random.standard_normal(leaf.shape, np.float32) * np.float32(0.02)
        flat[path] = values.astype(ml_dtypes.bfloat16)
    return tree.unflatten(flat)


def conversation(model) -> dict:
    """An image and a hundred frames."""
    import numpy as np

    random = np.random.default_rng(2)
    side, users = model.siglip.image_size, model.codebooks - 1 - model.codebooks_out
    return {
        "pixels": random.uniform(-1, 1, (1, side, side, 3)).astype(np.float32),
        "user_codes": random.integers(0, model.audio_vocab, (users, 100)).astype(np.int32),
    }


if __name__ == "__main__":
    main()
