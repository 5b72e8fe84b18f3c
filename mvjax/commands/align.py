"""`mvjax data align`: word times of speech that has none."""

from __future__ import annotations

import argparse
from pathlib import Path

from mvjax import messages
from mvjax.commands import arguments

_LISTING = "not_aligned.log"  # a JSON object a line; not .jsonl, which would be read as a manifest


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "align", align, "transcribe stereo files with word times, by Whisper (extra align)",
        "mvjax data align data.jsonl --model medium --device cuda")  # fmt: skip
    arg("source", type=Path, metavar="SOURCE",
        help="a manifest (jsonl) as of moshi-finetune, or a folder of manifests")  # fmt: skip
    arg("--model", default="medium", help="a Whisper size, or a checkpoint's path (%(default)s)")
    arg("--language", default="en", help="language, two letters (%(default)s)")
    arg("--device", default="cpu", help="PyTorch device (%(default)s)")
    arg("--assistant-only", action="store_true", help="skip the user's side; takes half the time")


def align(args: argparse.Namespace) -> int:
    """Writes a transcript beside each file that has none."""
    from mvjax.data.ingest import items
    from mvjax.data.speech import align as align_lib

    if not args.source.exists():
        raise FileNotFoundError(f"{args.source}: no such manifest or folder")
    aligner = align_lib.WhisperTimestamped(args.model, args.language, args.device)
    folder = args.source if args.source.is_dir() else args.source.parent
    listing = folder / _LISTING
    with items.SkippedItems(listing) as skips:
        count = align_lib.annotate_files(
            args.source,
            aligner,
            skips=skips,
            user=not args.assistant_only,
            progress=lambda name: print(f"{name} ...", flush=True),
        )
    print(f"{messages.counted(count, 'transcript')} written")
    skips.report()
    return 0
