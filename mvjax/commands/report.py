"""`mvjax report`: compares the trials of a sweep, or single runs, in one page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mvjax.commands import arguments, extras


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "report", report, "compare the trials of a sweep, or evaluated runs, in one page",
        "mvjax report runs/gates")  # fmt: skip
    arg("folders", type=Path, nargs="+", metavar="DIR",
        help="the folder of one sweep, or of one or several runs with results in eval/")  # fmt: skip
    arg("--out", type=Path, metavar="DIR",
        help="where report.html, report.md, its charts, results.json and results.csv go (report/ in the"
        " first folder)")  # fmt: skip


def report(args: argparse.Namespace) -> int:
    """Writes the report and prints where."""
    extras.require("scipy", "matplotlib", "jinja2")
    from mvjax.report import comparable, comparison, numbers, outcomes, page

    read = comparable.keep(outcomes.read(args.folders))
    found = numbers.scores(read)
    out = args.out or args.folders[0] / "report"
    texts = {page.JSON: numbers.as_json(read, found), page.CSV: numbers.as_csv(read, found)}
    page.write(out, comparison.compose(read, found), numbers=texts)
    for one in read.left_out:
        print(f"left out: {one}", file=sys.stderr)
    print(out / page.HTML)
    return 0
