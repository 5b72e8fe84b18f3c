"""`mvjax data`: makes records, validates, counts and shows them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from mvjax import messages
from mvjax.commands import align, arguments, encode, features, ingest


def add(commands) -> None:
    """Adds the subcommands."""
    summary = "make records; validate, count and show them"
    example = "mvjax data ingest docci DOCCI/ --out data/captions"
    data = arguments.group(commands, "data", summary, example, of="ACTION")
    arg = arguments.command(
        data, "digits", digits, "make the records of the digits world",
        "mvjax data digits --out data/digits")  # fmt: skip
    arg("--out", type=Path, required=True, metavar="DIR", help="folder of records")
    arg("--dialogues", type=int, default=500, metavar="N", help="spoken dialogues (%(default)s)")
    arg("--seed", type=arguments.seed, default=0, help="random seed (%(default)s)")

    ingest.add(data)
    encode.add(data)
    features.add(data)
    align.add(data)

    arg = arguments.command(
        data, "validate", validate, "list everything that is wrong with the datasets in a folder",
        "mvjax data validate data/digits")  # fmt: skip
    _folder(arg)

    arg = arguments.command(
        data, "stats", stats, "count records, hours, words, turns per kind, lengths",
        "mvjax data stats data/digits --json")  # fmt: skip
    _folder(arg)
    _tokenizer(arg)
    arg("--json", action="store_true", help="print JSON")

    arg = arguments.command(
        data, "show", show, "print the timeline of one record, and draw it",
        "mvjax data show data/digits --id train-0-00003 --out record.png")  # fmt: skip
    _folder(arg)
    _tokenizer(arg)
    arg("--id", required=True, metavar="X", help="id of the record")
    arg("--name", metavar="NAME", help="name of the dataset, if several have this id")
    arg("--out", type=Path, metavar="PNG", help="also draw image, speakers and text stream")

    arg = arguments.command(
        data, "rows", rows, "draw rows of an experiment's mixture; count what they hold and what is cut",
        "mvjax data rows experiments/digits.py --rows 10000")  # fmt: skip
    arguments.experiment(arg)
    arg("--rows", type=int, default=1000, metavar="N", help="rows of each part (%(default)s)")
    arg("--json", action="store_true", help="print JSON: counts and shares")


def digits(args: argparse.Namespace) -> int:
    """Makes the digits world's records."""
    from mvjax.digits import records

    records.prepare(args.out, dialogues=args.dialogues, seed=args.seed)
    return 0


def validate(args: argparse.Namespace) -> int:
    """Lists all problems; 1 if there is one."""
    from mvjax.data.inspect import folder

    count = 0
    for place, problems in folder.validate(args.folder):
        if not problems and place != args.folder:
            print(f"{folder.summary(place)}: good", flush=True)
        for problem in problems:
            print(problem, flush=True)
        count += len(problems)
    print(f"{args.folder}: {messages.counted(count, 'problem') if count else 'good'}")
    return 1 if count else 0


def stats(args: argparse.Namespace) -> int:
    """Prints the statistics of each dataset; 1 if some cannot be opened."""
    import msgspec

    from mvjax.data.inspect import folder, statistics

    pieces = _pieces(args)
    all_stats, problems = [], []
    for dataset in folder.datasets(args.folder):
        try:
            all_stats.append(statistics.statistics(dataset, pieces))
        except (ValueError, FileNotFoundError) as error:
            problems.append(str(error))
    if args.json:
        print(json.dumps({one.name: msgspec.structs.asdict(one) for one in all_stats}, indent=1))
    else:
        print("\n\n".join(statistics.table(one) for one in all_stats))
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


def show(args: argparse.Namespace) -> int:
    """Prints one record's timeline and draws it."""
    from mvjax.config import schema
    from mvjax.data.inspect import folder, timeline

    record = folder.find(args.folder, args.id, name=args.name)
    shown = timeline.timeline(record, _pieces(args), schema.ModelConfig())
    print(timeline.text(shown))
    if args.out is not None:
        from mvjax import files
        from mvjax.data.inspect import picture

        files.write_atomic(args.out, picture.png(shown))
        print(args.out)
    return 0


def rows(args: argparse.Namespace) -> int:
    """Prints what the first rows of each part hold."""
    if args.rows < 1:
        raise ValueError(f"--rows: expected 1 or more, got {args.rows}")
    run = arguments.load_experiment(args)
    from mvjax.data.inspect import rows as rows_lib

    data = dataclasses.replace(run.data, prepare=None)  # it looks at records, and makes none
    run = dataclasses.replace(run, data=data)
    found = rows_lib.count(run, rows=args.rows)
    print(
        json.dumps(rows_lib.as_json(run, found), indent=1)
        if args.json
        else rows_lib.table(run, found)
    )
    return 0


def _folder(arg) -> None:
    arg("folder", type=Path, metavar="DIR", help="folder of datasets: NAME.json and its files")


def _tokenizer(arg) -> None:
    arg("--tokenizer", metavar="LOCATION",
        help="SentencePiece model, such as package:mvjax.digits/assets/tokenizer.model; "
        "without it, a token is a word")  # fmt: skip


def _pieces(args: argparse.Namespace):
    from mvjax import files
    from mvjax.data.inspect import timeline

    return timeline.pieces(files.resolve(args.tokenizer) if args.tokenizer else None)
