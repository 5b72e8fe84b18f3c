"""`mvjax export`: writes a trained run for another runtime, with its certificate."""

from __future__ import annotations

import argparse
from pathlib import Path

from mvjax.commands import arguments, extras

_RUNTIMES = {"torch": "torch", "mlx": "mlx", "candle": "torch"}  # what the certificate runs on


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "export", export, "write a ready-to-serve folder with its parity certificate",
        "mvjax export runs/digits --target candle --quantize q8_0 --out exported/digits")  # fmt: skip
    arguments.trained_run(arg)
    arg("--target", "--to", choices=("torch", "mlx", "candle"), required=True,
        help="the runtime that will run it")  # fmt: skip
    arg("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    arg("--dtype", choices=("float32", "bfloat16"),
        help="of the weights, mixed as in upstream's file; default: as they were trained")  # fmt: skip
    arg("--quantize", "--quantise", dest="quantize", choices=("q8", "q4", "q8_0"),
        help="q8 or q4 for mlx, q8_0 (a GGUF) for candle")  # fmt: skip
    arg("--frames", type=int, metavar="N",
        help="frames to compare; default: past the attention window, if that takes at most 600")  # fmt: skip
    arg("--verify", type=Path, metavar="DIR", action=_Verify,
        help="compare an export's files with its certificate and stop; status 1 if they differ")  # fmt: skip
    arg("--list", action=arguments.Listing, const=_targets,
        help="print which designs each target can run, and why not")  # fmt: skip


class _Verify(argparse.Action):
    """Verifies the folder and stops, as `--help` does, whatever else is missing."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Acts when the parser meets the option."""
        from mvjax.export import verify

        parser.exit(verify.report(Path(str(values))))


def export(args: argparse.Namespace) -> int:
    """Writes an upstream runtime's folder, runs it, and certifies that it agrees."""
    extras.require(_RUNTIMES[args.target], *(["gguf"] if args.quantize == "q8_0" else []))
    import numpy as np

    from mvjax.export import certificate, model_card
    from mvjax.export import folder as export_folder
    from mvjax.train import load

    if args.frames is not None and args.frames < certificate.MIN_FRAMES:
        raise ValueError(f"--frames: expected {certificate.MIN_FRAMES} or more, got {args.frames}")
    trained = load.trained(*args.trained_run)
    model = trained.config.model
    frames = args.frames or certificate.usual_frames(model)
    results = model_card.read_results(args.trained_run.folder, step=trained.step)
    how = {"dtype": args.dtype, "quantization": args.quantize}
    export_folder.export(
        trained.params, trained.config, args.target, args.out, results=results, **how
    )
    rng = np.random.default_rng(0)
    side, users = model.siglip.image_size, model.codebooks - 1 - model.codebooks_out
    result = certificate.certify(
        trained.params,
        trained.config,
        args.out,
        args.target,
        pixels=rng.uniform(-1, 1, (1, side, side, 3)).astype(np.float32),
        user_codes=rng.integers(0, model.audio_vocab, (users, frames)).astype(np.int32),
        **how,
    )
    print(f"{args.out}: {certificate.summary(result)}")
    return 1 if result["verdict"] == "fail" else 0


def _targets() -> str:
    from mvjax.export import targets

    return targets.table()
