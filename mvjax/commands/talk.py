"""`mvjax talk`: the server's conversation offline, from files to files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mvjax import files
from mvjax.commands import arguments, extras, speakers

_SETTINGS: dict[str, tuple[type, str]] = {  # of `TalkConfig`, whose names they are
    "lead_in": (float, "seconds of silence before the first question"),
    "tail": (float, "seconds of silence after each question, for its answer"),
    "voice": (str, "eSpeak NG's, of written questions, such as en-us+f2"),
    "text_temperature": (float, "of text; 0: the likeliest id"),
    "text_top_k": (int, "draw text from the so many likeliest ids; 0: from all"),
    "audio_temperature": (float, "of speech"),
    "audio_top_k": (int, "of speech"),
}


class _Event(argparse.Action):
    """Appends (option, value) to one list: images and questions in the order given."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Acts when the parser meets the option."""
        namespace.events = [*(namespace.events or []), (self.const, values)]


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "talk", talk, "hold a conversation offline, from files to files",
        "mvjax talk exported/digits --image x.png --audio question.wav --out answer.wav")  # fmt: skip
    speakers.add(arg)
    arg("--image", dest="events", const="image", default=[], type=Path, action=_Event, metavar="X",
        help="seen from here on: before the first question, or between two")  # fmt: skip
    arg("--audio", dest="events", const="audio", default=[], type=Path, action=_Event, metavar="WAV",
        help="a spoken question: wav, flac, mp3 or Ogg Vorbis; may be repeated")  # fmt: skip
    arg("--text", dest="events", const="text", default=[], action=_Event, metavar="QUESTION",
        help="a written question, which eSpeak NG speaks; may be repeated")  # fmt: skip
    arg("--out", type=Path, required=True, metavar="WAV",
        help="the model's speech left, the user's right; the transcript goes beside it, as JSON")  # fmt: skip
    for name, (kind, summary) in _SETTINGS.items():
        arg(f"--{name.replace('_', '-')}", type=kind, metavar="N",
            help=f"{summary}; default: what DIR says in talk.json")  # fmt: skip
    arg("--seed", type=arguments.seed, default=0, help="random seed of the sampling (%(default)s)")


def talk(args: argparse.Namespace) -> int:
    """Writes the conversation and its transcript, and prints the answers."""
    extras.require("sphn")
    import dataclasses

    from mvjax.serve import recordings
    from mvjax.serve import talk as talk_lib

    _check(args)
    given = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    how = dataclasses.replace(speakers.talk(args), **given)
    events = [_event(kind, value, how.voice) for kind, value in args.events]
    speaker = speakers.open_speaker(args, minutes=talk_lib.minutes(events, how)).speaker
    done = talk_lib.converse(speaker, events, how, seed=args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    recordings.write(args.out, done.assistant, done.user)
    transcript = json.dumps(done.transcript, indent=1, ensure_ascii=False)
    files.write_atomic(args.out.with_suffix(".json"), f"{transcript}\n".encode())
    for question in done.transcript["questions"]:
        print(f"{question['asked']}\n    {question['answer']}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if not any(kind in ("audio", "text") for kind, _ in args.events):
        raise ValueError("expected a question, got none; give --audio WAV or --text QUESTION")
    if args.out.suffix.lower() != ".wav":
        raise ValueError(f"--out {args.out}: expected a name that ends with .wav")
    transcript = args.out.with_suffix(".json")
    inputs = [value for _, value in args.events if isinstance(value, Path)]
    for path in inputs:
        if not path.is_file():
            raise ValueError(f"{path}: expected an image or a recording, found no such file")
    for path in (args.out, transcript):
        arguments.check_writable(path)
        if path.resolve().is_relative_to(args.folder.folder.resolve()):
            raise ValueError(f"--out: {path} would lie inside DIR; name a file elsewhere")
        if any(_same(path, given) for given in inputs):
            raise ValueError(f"--out: {path} is an input; name another file")
    if transcript.exists() and not _is_transcript(transcript):
        raise ValueError(f"--out: {transcript} is there and no transcript; name another file")


def _same(path: Path, other: Path) -> bool:
    both_there = path.exists() and other.exists()
    return path.resolve() == other.resolve() or (both_there and path.samefile(other))


def _is_transcript(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(content, dict) and {"questions", "transcript", "gates"} <= content.keys()


def _event(kind: str, value: Any, voice: str) -> Any:
    from mvjax.config import limits
    from mvjax.serve import asking, recordings
    from mvjax.serve import talk as talk_lib

    if kind == "text":
        return talk_lib.Question(value, asking.spoken(value, voice).ravel())
    if kind == "audio":
        longest = limits.LimitsConfig().audio_seconds
        return talk_lib.Question(value.name, recordings.read(value, max_seconds=longest))
    return talk_lib.Shown(value.name, value.read_bytes())
