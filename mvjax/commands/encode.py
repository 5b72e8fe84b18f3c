"""`mvjax data encode`: makes records of speech."""

from __future__ import annotations

import argparse
import functools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mvjax import messages
from mvjax.commands import arguments, spinner
from mvjax.stores import places

if TYPE_CHECKING:
    from mvjax.config import schema
    from mvjax.data.speech import encoder


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "encode", encode, "encode spoken dialogues (stereo audio) into records",
        "mvjax data encode experiments/digits.py speech/ --out data/speech --name chat")  # fmt: skip
    arg("experiment", type=Path, metavar="EXP.py", help="experiment, for its codec and tokenizer")
    arg("source", type=Path, metavar="SOURCE", help="folder with the dataset's files")
    arg("--pick", metavar="NAME", help="which config of a sweep")
    arg(
        "--dataset", default="moshi-finetune", choices=("moshi-finetune", "babillage"),
        help="its format: moshi-finetune's jsonl, wav and json (default), or Babillage's Parquet",
    )  # fmt: skip
    arg("--out", type=arguments.place, required=True, metavar="ROOT",
        help="folder of records; gs:// and s3:// too")  # fmt: skip
    arg("--name", required=True, help="name of the dataset of records")
    arg("--split", help="split of Babillage (the first)")
    arg("--images", type=Path, action="append", default=[], metavar="DIR",
        help="image folders of Babillage")  # fmt: skip
    arg("--augment", action="store_true", help="augment the user's side: gain, noise, echo")
    arg("--noise", type=Path, metavar="DIR", help="noise recordings for --augment (pink noise)")
    arg("--copies", type=int, default=1, metavar="N",
        help="augmented copies per dialogue (%(default)s)")  # fmt: skip
    arg("--seed", type=arguments.seed, default=0, help="random seed of --augment (%(default)s)")
    arg("--workers", type=int, metavar="N", help="processes (one per core; 0 on an accelerator)")
    arg("--batch-seconds", type=float, default=200.0, metavar="S",
        help="batch size, in seconds of audio (%(default)s)")  # fmt: skip
    arg("--max-skipped", type=int, metavar="N",
        help="stop when more than N items are skipped (no limit)")  # fmt: skip
    arg("--beam", metavar="OPTIONS",
        help="encode on Apache Beam with these options: --beam='--runner=DirectRunner'")  # fmt: skip
    arg("-v", "--verbose", action="store_true", help="with --beam: show what Beam logs of its work")


def encode(args: argparse.Namespace) -> int:
    """Encodes, writes the records, and prints the speed and what was skipped."""
    from mvjax.config import beside_moshi
    from mvjax.data.ingest import catalog, sources
    from mvjax.data.records import index, publishing

    _refuse_beam(args)
    run = beside_moshi.follow(arguments.read_experiment(args.experiment, pick=args.pick))
    split = catalog.find(args.dataset, args.split)[1]
    sources.check_folders(args.images)
    index.check_name(args.out / args.name)
    read = functools.partial(
        catalog.reader(args.dataset), args.source, split=split, images=args.images
    )
    with publishing.published(args.out):
        tally, skips = _write(args, run, read)
    print(
        f"{places.named(args.out / args.name)}: {messages.counted(tally.records, 'record')},"
        f" {tally.seconds / 3600:.2f} h of audio"
    )
    if tally.fresh_seconds:
        print(
            f"encoded {tally.fresh_seconds / 3600:.2f} h in {tally.elapsed / 60:.1f} min:"
            f" {tally.hours_per_minute():.2f} hours of audio a minute"
        )
    skips.report()
    return 0


def _write(args: argparse.Namespace, run: schema.Config, read):
    """Encodes and writes; returns the tally and what was skipped."""
    from mvjax.data.ingest import items
    from mvjax.data.records import dataset
    from mvjax.data.speech import encode as encode_lib

    out, settings = args.out / args.name, _settings(args, run)
    shown = places.named(out)
    args.out.mkdir(parents=True, exist_ok=True)
    workers = encode_lib.default_workers() if args.workers is None else args.workers
    if args.beam is not None:
        from mvjax.data.speech import beam

        tasks = encode_lib.tasks(read(skips=items.SkippedItems()), settings, copies=args.copies)
        fresh = beam.fill(tasks, settings, options=shlex.split(args.beam), verbose=args.verbose)
        print(f"encoded on Beam: {fresh}")
        workers = 0
    with (
        items.SkippedItems(items.bad_records(out), budget=args.max_skipped) as skips,
        spinner.shown(f"{shown}: opening") as tell,
    ):
        tally = encode_lib.write(
            read(skips=skips),
            out,
            settings=settings,
            made_with=dataset.identity(run.frozen),
            skips=skips,
            copies=args.copies,
            workers=workers,
            limits=run.data.limits,
            progress=lambda tally: tell(f"{shown}: {tally.summary()}"),
        )
    return tally, skips


def _refuse_beam(args: argparse.Namespace) -> None:
    if args.beam is not None and places.url(args.out) is not None:
        raise ValueError(
            f"--beam with --out {args.out}: expected a folder that all workers of the job see, as they write"
            " codes into it one by one, got one of a store; write to a shared folder and copy the records"
        )


def _settings(args: argparse.Namespace, run: schema.Config) -> encoder.EncodeSettings:
    from mvjax.data.speech import augment, encode, encoder

    noise = str(args.noise) if args.noise else None
    return encoder.EncodeSettings(
        codec=run.frozen.codec,
        config=run.codec,
        codebooks=run.model.codebooks_out,
        store=_codes(args.out, encode.STORE),
        augment=augment.Augment(seed=args.seed, noise=noise) if args.augment else None,
        max_seconds=run.data.limits.audio_seconds,
        batch_seconds=args.batch_seconds,
    )


def _codes(out: Path, name: str) -> Path:
    """Where codes are kept until the records are written, so that the same command goes on after a kill.

    Codes are named by all that they depend on, so those for several folders of stores lie together.
    """
    return out / name if places.url(out) is None else places.cache() / name
