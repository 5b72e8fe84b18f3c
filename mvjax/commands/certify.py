"""`mvjax certify`: compares an exported folder with its run, such as one that no runtime has run yet."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvjax import run_folder
from mvjax.commands import arguments, extras
from mvjax.stores import places

if TYPE_CHECKING:
    from mvjax.config import schema
    from mvjax.export import targets
    from mvjax.train import load

_RUNTIMES = {"torch": "torch", "mlx": "mlx", "candle": "torch"}  # what the certificate runs on


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "certify", certify, "write the certificate of an export anew, all of it",
        "mvjax certify exported/digits --run runs/digits")  # fmt: skip
    arg("folder", type=Path, metavar="DIR", help="written by `mvjax export`, here or elsewhere")
    arg("--run", type=arguments.run_step, required=True, metavar="RUN[@STEP]", dest="trained_run",
        help="what it was exported from, and which of its checkpoints (the newest)")  # fmt: skip
    frames(arg)


def frames(arg) -> None:
    """Adds --frames."""
    arg("--frames", type=int, metavar="N",
        help="frames to compare, 100 or more; default: past the attention window, if that takes at most"
        " 600")  # fmt: skip


def certify(args: argparse.Namespace) -> int:
    """Compares files and computation; status 1 if the verdict is fail."""
    from mvjax.runtimes import folder as folder_lib

    target = folder_lib.layout(args.folder)
    extras.require(_RUNTIMES[target])
    count = how_many(args.frames)
    from mvjax.export import certificate, weight_files
    from mvjax.train import load

    trained = load.trained(*args.trained_run)
    with certificate.revoked_if_it_fails(args.folder):
        how = weight_files.how_stored(args.folder, trained.params, trained.config.model, target)
    return write(args.folder, target, trained, args.trained_run.folder, frames=count, **how)


def how_many(frames: int | None) -> int | None:
    """Returns --frames; ValueError if they are too few."""
    from mvjax.export import certificate

    if frames is not None and frames < certificate.MIN_FRAMES:
        raise ValueError(f"--frames: expected {certificate.MIN_FRAMES} or more, got {frames}")
    return frames


def write(
    folder: Path,
    target: targets.Target,
    trained: load.TrainedRun,
    run: Path,
    *,
    frames: int | None,
    dtype: schema.Dtype | None,
    quantization: targets.Quantization | None,
) -> int:
    """Writes and prints the certificate of a folder and its run; returns the exit status."""
    from mvjax.export import certificate, verdict

    model = trained.config.model
    found: dict[str, Any] = certificate.certify(
        trained.params,
        trained.config,
        folder,
        target,
        **certificate.any_conversation(model, frames or certificate.usual_frames(model)),
        dtype=dtype,
        quantization=quantization,
    )
    step = run_folder.RunStep(run, trained.step)
    command = f"mvjax certify {folder} --run {step}"
    if places.url(folder) or places.url(run):  # of a store: `certify` takes folders of this machine
        options = {"--dtype": dtype, "--quantize": quantization}
        how = "".join(f" {name} {value}" for name, value in options.items() if value)
        command = places.named(f"mvjax export {step} --target {target}{how} --out {folder}")
    print(f"{places.named(folder)}: {verdict.summary(found, command=command)}")
    return 0 if found["verdict"] in verdict.GOOD else 1
