"""`mvjax data`: makes records."""

from __future__ import annotations

import argparse
from pathlib import Path

from mvjax.commands import arguments


def add(commands) -> None:
    """Adds the subcommands."""
    data = commands.add_parser("data", help="make records").add_subparsers(
        dest="dataset", required=True, metavar="DATASET"
    )
    add = arguments.command(
        data, "digits", digits, "the digits world: images, talk, speech, codes",
        "mvjax data digits --out data/digits",
    )  # fmt: skip
    add("--out", type=Path, required=True, metavar="DIR", help="folder of records")
    add("--dialogues", type=int, default=500, metavar="N", help="spoken ones (%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")


def digits(args: argparse.Namespace) -> int:
    """Makes the digits world's records."""
    from mvjax.tiny import records

    records.prepare(args.out, dialogues=args.dialogues, seed=args.seed)
    return 0
