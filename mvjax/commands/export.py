"""`mvjax export`: writes a trained run for another runtime, with its certificate."""

from __future__ import annotations

import argparse
from pathlib import Path

from mvjax.commands import arguments, certify, extras


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "export", export, "write a ready-to-serve folder with its parity certificate",
        "mvjax export runs/digits --target candle --quantize q8_0 --out exported/digits")  # fmt: skip
    arguments.trained_run(arg, type=arguments.stored_run_step)
    arg("--target", "--to", choices=("torch", "mlx", "candle"), required=True,
        help="the runtime that will run it")  # fmt: skip
    arg("--out", type=arguments.place, required=True, metavar="DIR",
        help="folder to write; RUN and DIR may be gs:// and s3://")  # fmt: skip
    arg("--dtype", choices=("float32", "bfloat16"),
        help="of the weights, mixed as in upstream's file; default: as they were trained")  # fmt: skip
    arg("--quantize", "--quantise", dest="quantize", choices=("q8", "q4", "q8_0"),
        help="q8 or q4 for mlx, q8_0 (a GGUF) for candle")  # fmt: skip
    certify.frames(arg)
    arg("--verify", type=arguments.exported, metavar="DIR", action=_Verify,
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
    """Writes an upstream runtime's folder, runs it (if that is installed), and certifies that it agrees."""
    from mvjax.export import folder as export_folder
    from mvjax.export import model_card, publishing, targets
    from mvjax.train import load, run_store

    targets.weight_file(args.target, args.quantize)  # or a ValueError
    if args.quantize == "q8_0":
        extras.require("gguf")
    frames, run = certify.how_many(args.frames), args.trained_run
    how = {"dtype": args.dtype, "quantization": args.quantize}
    with run_store.opened(run.folder, dry=True), publishing.published(args.out, args.target):
        trained = load.trained(*run)
        results = model_card.read_results(run.folder, step=trained.step)
        export_folder.export(
            trained.params, trained.config, args.target, args.out, results=results, **how
        )
        return certify.write(args.out, args.target, trained, run.folder, frames=frames, **how)


def _targets() -> str:
    from mvjax.export import targets

    return targets.table()
