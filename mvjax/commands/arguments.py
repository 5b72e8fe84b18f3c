"""What subcommands share: their declaration, listings, and the arguments that name an experiment."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mvjax import files, run_folder
from mvjax.commands import parser as parser_lib
from mvjax.stores import objects, places, staging

if TYPE_CHECKING:
    from mvjax.config import schema


def command(commands, name, run, summary, example):
    """Adds a subcommand; returns its `add_argument`."""
    parser = _explained(commands, name, summary, example)
    parser.set_defaults(run=run)
    return parser.add_argument


def group(commands, name, summary, example, *, of):
    """Adds a command that has subcommands and alone prints its help; returns what adds them."""
    return subcommands(_explained(commands, name, summary, example), of=of)


def _explained(commands, name, summary, example):
    return commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def subcommands(parser, *, of):
    """Lets a parser take subcommands, shown as `of`; without one it prints its help."""
    parser.set_defaults(run=lambda args: parser.print_help() or 0)
    return parser.add_subparsers(metavar=of)


class Listing(argparse.Action):
    """Prints what `const` returns and stops, as `--help` does, whatever else is missing."""

    def __init__(self, option_strings, dest, const, help) -> None:
        super().__init__(option_strings, dest, nargs=0, const=const, help=help)

    def __call__(self, parser, *_) -> None:
        """Acts when the parser meets the option."""
        print(self.const())
        parser.exit()


def experiment(arg) -> None:
    """Adds EXP.py, --pick and --set."""
    arg("experiment", type=Path, metavar="EXP.py",
        help="defines config(), or sweep() by name; or a run's config.json, or its folder")  # fmt: skip
    arg("--pick", metavar="NAME", help="which config of a sweep")
    arg("--set", action="append", default=[], metavar="PATH=VALUE",
        help="override a field, such as train.steps=100; may be repeated")  # fmt: skip


def seed(text: str) -> int:
    """Reads a random seed; the type of an argument."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, got {text!r}")
    return int(text)


def place(text: str) -> Path:
    """Reads a folder on this machine or on a store (gs://, s3://); the type of an argument."""
    try:
        return files.output(parser_lib.given(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run_step(text: str) -> run_folder.RunStep:
    """Reads RUN or RUN@STEP, a folder on this machine; the type of an argument."""
    try:
        files.on_disk(parser_lib.given(text))
        return run_folder.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def stored_run_step(text: str) -> run_folder.RunStep:
    """Reads RUN or RUN@STEP, which may be on a store; the type of an argument."""
    try:
        return run_folder.parse(parser_lib.given(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def exported(text: str) -> Path:
    """Reads the folder of an export; one of a store is copied here first; the type of an argument."""
    try:
        if not places.is_url(text):
            return files.on_disk(parser_lib.given(text))
        folder = files.local(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if objects.stat(f"{places.url(folder)}/{run_folder.CONFIG_TEXT}"):
        raise argparse.ArgumentTypeError(
            f"{text}: expected an export, got a run folder, which is copied from a store by mvjax eval and"
            " export alone; export it, or copy it to this machine"
        )
    staging.whole(folder)
    return folder


def served(text: str) -> run_folder.RunStep:
    """Reads RUN or RUN@STEP on this machine, or an export there or on a store; the type of an argument."""
    return run_folder.RunStep(exported(text), None) if places.is_url(text) else run_step(text)


def trained_run(arg, *, type=run_step) -> None:
    """Adds RUN or RUN@STEP, a `run_folder.RunStep`."""
    arg("trained_run", type=type, metavar="RUN[@STEP]",
        help="run folder of `mvjax train`, and which of its checkpoints (the newest)")  # fmt: skip


def load_experiment(args: argparse.Namespace) -> schema.Config:
    """Returns the config that the arguments of `experiment` describe, with what it leaves to Moshi's files.

    Raises:
      ValueError: if file, settings and the config.json beside `frozen.moshi` do not fit together.
    """
    from mvjax.config import beside_moshi, text

    said = [setting.partition("=")[0] for setting in args.set]
    if saved_config(args.experiment):  # it has all that was left to Moshi's files
        said.append("model")
    run = text.override(read_experiment(args.experiment, pick=args.pick), args.set)
    return beside_moshi.follow(run, said=said)


def read_experiment(path: Path, *, pick: str | None = None) -> schema.Config:
    """Returns the config of an experiment file, of a saved config.json, or of a run folder.

    Raises:
      ValueError: if it cannot be read, or `pick` is given of a saved config.
    """
    from mvjax.config import text

    saved = saved_config(path)
    if saved is None:
        return text.load_experiment(path, pick=pick)
    if pick is not None:
        raise ValueError(
            f"--pick {pick}: {saved} is the config of one run, not a sweep; leave --pick out, or name"
            " the experiment file"
        )
    try:
        return text.from_json(json.loads(saved.read_text()))
    except ValueError as error:
        raise ValueError(f"{saved}: expected the saved config of a run: {error}") from error


def saved_config(
    path: Path, expected: str = "an experiment file or the folder of a run"
) -> Path | None:
    """Returns the saved config that a path names: a JSON file, or that of a run folder; None if neither.

    `expected`: what the command takes, for the message.

    Raises:
      ValueError: if it is another folder.
    """
    if not path.is_dir():
        return path if path.suffix == ".json" and path.is_file() else None
    if (config := path / run_folder.CONFIG_JSON).is_file():
        return config
    meant = run_folder.nearby(path, run_folder.is_run)
    raise ValueError(f"{path}: expected {expected}, found no {run_folder.CONFIG_JSON} in it{meant}")


def check_folder(path: Path) -> None:
    """Raises ValueError if a path, or what it lies in, is a file where a folder belongs."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"{path}: expected a folder, but {there} is a file; choose another one")


def check_writable(path: Path) -> None:
    """Checks, before long work, that a file can be written; its folder may be made later.

    Raises:
      ValueError: if it is a folder, or its folder cannot be made or written.
    """
    if path.is_dir():
        raise ValueError(f"{path}: expected the name of a file, got a folder; name a file in it")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    fact = "is a file"
    if there.is_dir():
        try:
            draft = there / f"{path.name}{files.DRAFT}"
            draft.touch()
            draft.unlink()
            return
        except OSError as error:  # rights, a file system without writing, a name that is too long
            fact = f"cannot be written: {error.strerror}"
    raise ValueError(f"{path}: expected a file in a folder to write into, but {there} {fact}")
