"""`mvjax report`: compares the trials of a sweep, or single runs, in one page."""

from __future__ import annotations

import argparse
import contextlib
import sys

from mvjax.commands import arguments, extras
from mvjax.stores import places, work


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "report", report, "compare the trials of a sweep, or evaluated runs, in one page",
        "mvjax report runs/gates")  # fmt: skip
    arg("folders", type=arguments.place, nargs="+", metavar="DIR",
        help="the folder of one sweep, or of one or several runs with results in eval/; gs:// and s3://"
        " too")  # fmt: skip
    arg("--out", type=arguments.place, metavar="DIR",
        help="where report.html, report.md, its charts, results.json and results.csv go (report/ in the"
        " first folder)")  # fmt: skip


def report(args: argparse.Namespace) -> int:
    """Writes the report and prints where."""
    extras.require("scipy", "matplotlib", "jinja2")
    from mvjax.report import comparable, comparison, numbers, outcomes, page

    out = args.out or args.folders[0] / "report"
    with contextlib.ExitStack() as stack:
        for folder in args.folders:
            stack.enter_context(work.read(folder, outcomes.reads))
        stack.enter_context(work.written(out, last=lambda name: name == page.HTML))
        read = comparable.keep(outcomes.read(args.folders))
        found = numbers.scores(read)
        texts = {page.JSON: numbers.as_json(read, found), page.CSV: numbers.as_csv(read, found)}
        page.write(out, comparison.compose(read, found), numbers=texts)
    for one in read.left_out:
        print(f"left out: {places.named(one)}", file=sys.stderr)
    print(places.named(out / page.HTML))
    return 0
