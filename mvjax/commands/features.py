"""`mvjax data features`: encodes the images of a run once, so that training need not."""

from __future__ import annotations

import argparse

from mvjax.commands import arguments


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "features", features, "encode the images of an experiment's datasets once",
        "mvjax data features experiments/digits.py")  # fmt: skip
    arguments.experiment(arg)


def features(args: argparse.Namespace) -> int:
    """Makes what is missing; a run reads it with data.features=True."""
    from rich import console, progress

    from mvjax.train import encode_features

    run = arguments.load_experiment(args)
    bar = progress.Progress(console=console.Console(stderr=True), transient=True)
    with bar:
        tasks: dict[str, progress.TaskID] = {}

        def tell(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        made = encode_features.make(run, progress=tell)
    for name, index in made.items():
        if index is None:
            print(f"{name}: up to date")
            continue
        count = sum(shard.count for shard in index.features)
        size = sum(shard.bytes for shard in index.features)
        print(f"{name}: {count} images, {index.tokens} x {index.width} each, {size / 1e6:.1f} MB")
    print("train with --set data.features=True")
    return 0
