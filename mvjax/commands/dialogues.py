"""`mvjax dialogues`: synthetic visual dialogues, written by a language model and spoken by a synthesizer."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from mvjax import messages
from mvjax.commands import arguments, extras, ingest

KINDS = {
    "PROP": "colors, shapes, materials",
    "LOC": "where things are",
    "NUM": "how many there are",
    "LEAD1": "curt questions, often about absent things",
    "LEAD2": "a user who insists on what is not there",
    "TS1": "a pupil who sees badly and a teacher who explains",
    "TS2": "a pupil who sees nothing and a strict teacher",
    "COMB": "an open question, then another kind in every utterance",
}
ESPEAK, HIBARI, KYUTAI = "espeak", "hibari", "kyutai"
_HIBARI_NEEDS = ("hibari", "onnxruntime")


def add(commands) -> None:
    """Adds the subcommands."""
    summary = "make synthetic visual dialogues: write them, speak them, or pack them as text"
    example = "mvjax dialogues write data/captions/docci-train --kind LOC --out docci_loc.jsonl"
    dialogues = arguments.group(commands, "dialogues", summary, example, of="STEP")
    _add_write(dialogues)
    _add_speak(dialogues)
    _add_records(dialogues)


def _add_write(commands) -> None:
    arg = arguments.command(
        commands, "write", write, "write dialogues about captions, by a language model in both roles",
        "mvjax dialogues write captions.jsonl --kind COMB --endpoint http://localhost:8000/v1"
        " --out dialogues.jsonl")  # fmt: skip
    arg("source", type=Path, nargs="?", metavar="SOURCE",
        help="captions: a JSONL of {id, caption, image}, or records ROOT/NAME")  # fmt: skip
    arg("--out", type=Path, required=True, metavar="FILE",
        help="FILE.jsonl, or FILE.db (SQLite); run again to continue")  # fmt: skip
    arg("--kind", action="append", choices=KINDS, dest="kinds",
        help="what they are about; may be repeated (COMB): "
        + "; ".join(f"{name} {about}" for name, about in KINDS.items()))  # fmt: skip
    arg("--per-image", type=int, default=1, metavar="N",
        help="dialogues per image and kind (%(default)s)")  # fmt: skip
    arg("--unrelated", type=int, metavar="N",
        help="instead of SOURCE: N dialogues without a picture")  # fmt: skip
    arg("--endpoint", default="http://localhost:8000/v1", metavar="URL",
        help="OpenAI-compatible; a key is read from OPENAI_API_KEY (%(default)s)")  # fmt: skip
    arg("--model", default="mistralai/Mistral-Nemo-Instruct-2407", metavar="NAME",
        help="its name on the server (%(default)s)")  # fmt: skip
    arg("--temperature", type=float, default=0.7, help="sampling temperature (%(default)s)")
    arg("--max-tokens", type=int, default=150, metavar="N",
        help="limit of one answer, reasoning included (%(default)s)")  # fmt: skip
    arg("--rename", action="append", default=[], metavar="NAME=NEW",
        help="NEW name of temperature, max_tokens or seed for servers that refuse it; NAME= leaves it"
        " out; may be repeated: --rename max_tokens=max_completion_tokens")  # fmt: skip
    arg("--parameter", action="append", default=[], metavar="NAME=JSON",
        help="send this in every request, too; may be repeated:"
        """ --parameter 'chat_template_kwargs={"enable_thinking": false}'""")  # fmt: skip
    arg("--concurrency", type=int, default=32, metavar="N",
        help="concurrent dialogues (%(default)s)")  # fmt: skip
    arg("--tries", type=int, default=5, metavar="N",
        help="attempts at a dialogue before it is dropped (%(default)s)")  # fmt: skip
    arg("--timeout", type=float, default=120.0, metavar="S",
        help="seconds per request (%(default)s)")  # fmt: skip
    arg("--no-system-role", action="store_true",
        help="instructions go into the first user message, for models without a system role")  # fmt: skip
    arg("--seed", type=arguments.seed, default=0,
        help="random seed of lengths, instructions, requests (%(default)s)")  # fmt: skip


def _add_speak(commands) -> None:
    arg = arguments.command(
        commands, "speak", speak, "synthesize dialogues as stereo speech with word times",
        "mvjax dialogues speak dialogues.jsonl --out data/spoken")  # fmt: skip
    arg("file", type=Path, metavar="FILE", help="dialogues from `mvjax dialogues write`")
    arg("--out", type=Path, required=True, metavar="DIR",
        help="folder in moshi-finetune's format; run again to continue")  # fmt: skip
    arg("--tts", metavar="TTS",
        help="hibari (the assistant; users: espeak), espeak, kyutai, kyutai:REPO_OR_FOLDER, or a command"
        " such as 'piper -m voice.onnx -f {wav}'; it may take {text}, {voice}, {seed} and write word"
        " times to {json} (hibari where it is installed, else espeak)")  # fmt: skip
    arg("--assistant-voice", metavar="VOICE", help="default: one of the synthesizer's")
    arg("--user-voice", action="append", metavar="VOICE", dest="user_voices",
        help="may be repeated: one is drawn per dialogue")  # fmt: skip
    arg("--jobs", type=int, metavar="N", help="processes (1 for kyutai, else one per CPU)")
    arg(
        "--seed",
        type=arguments.seed,
        default=0,
        help="random seed of voices, gaps, loudness (%(default)s)",
    )


def _add_records(commands) -> None:
    arg = arguments.command(
        commands, "records", records, "make records of written dialogues, to train on as text",
        "mvjax dialogues records dialogues.jsonl --out data/vision --name dialogues")  # fmt: skip
    arg("file", type=Path, metavar="FILE", help="dialogues from `mvjax dialogues write`")
    arg("--out", type=Path, required=True, metavar="ROOT", help="folder of records")
    arg("--name", required=True, help="name of the dataset of records")
    arg("--max-skipped", type=int, metavar="N",
        help="stop when more than N dialogues are skipped (no limit)")  # fmt: skip


def write(args: argparse.Namespace) -> int:
    """Writes dialogues; status 1 if the endpoint failed on some, or captions cannot be used."""
    from mvjax.dialogues import endpoint, writer

    if (args.source is None) == (args.unrelated is None):
        raise ValueError("dialogues write: expected SOURCE or --unrelated N, one of them")
    unread: list[tuple[str, str]] = []
    if args.unrelated is None:
        plans = writer.visual_plans(
            args.source,
            args.out,
            args.kinds or ["COMB"],
            per_image=args.per_image,
            bad=lambda *line: unread.append(line),
        )
    elif args.kinds or args.per_image != 1:
        raise ValueError("dialogues write: --kind and --per-image go with SOURCE")
    else:
        plans = writer.unrelated_plans(args.unrelated, seed=args.seed)
    asked = endpoint.Endpoint(
        args.endpoint,
        args.model,
        endpoint.key_from_environment(),
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        timeout=args.timeout,
        system_role=not args.no_system_role,
        renamed=_pairs("--rename", args.rename),
        extra={k: _json(v) for k, v in _pairs("--parameter", args.parameter).items()},
    )
    summary = writer.write(
        plans, args.out, asked, concurrency=args.concurrency, tries=args.tries, seed=args.seed
    )
    print(f"{args.out}: {summary.text()}")
    if unread:
        listed = messages.lines(": ".join(line) for line in unread)
        print(f"{len(unread)} captions cannot be used:{listed}")
    return 1 if summary.unanswered or unread else 0


def records(args: argparse.Namespace) -> int:
    """Writes the records of dialogues, as text."""
    from mvjax.dialogues import text_records

    path = args.out / args.name
    ingest.report(path, text_records.pack(args.file, path, budget=args.max_skipped))
    return 0


def _pairs(option: str, words: list[str]) -> dict[str, str]:
    bad = [word for word in words if not word.partition("=")[0] or "=" not in word]
    if bad:
        raise ValueError(f"dialogues write {option}: expected NAME=..., got {bad}")
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def _json(value: str) -> object:
    """The JSON value, or the text itself where it is none: "low" needs no quotes."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def speak(args: argparse.Namespace) -> int:
    """Speaks dialogues; status 1 if some could not be spoken."""
    from mvjax.dialogues import speaking

    there = all(map(extras.installed, _HIBARI_NEEDS))
    engine = args.tts or (HIBARI if there else ESPEAK)
    voices = _voices(engine, args.assistant_voice, args.user_voices)
    print(f"{engine}: the assistant is {voices.assistant or 'its only voice'}", flush=True)
    usual = 1 if engine.startswith(KYUTAI) else os.cpu_count() or 1
    jobs = usual if args.jobs is None else args.jobs
    summary = speaking.speak(args.file, args.out, voices, jobs=jobs, seed=args.seed)
    print(f"{args.out}: {summary.text()}")
    if summary.failed:
        print(f"reasons: {args.out / speaking.FAILURES}; run again to retry")
    return 1 if summary.failed else 0


def _voices(name: str, assistant: str | None, users: list[str] | None):
    """The synthesizer that `--tts` names, with the voices that were asked for."""
    from mvjax.dialogues import hibari_tts, kyutai_tts, tts

    chosen = {"assistant": assistant, "users": tuple(users) if users else None}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    if name == ESPEAK:
        return tts.Espeak(**chosen)
    if name == HIBARI:
        extras.require(*_HIBARI_NEEDS)
        return hibari_tts.Hibari(**chosen)
    engine, _, repo = name.partition(":")
    if engine == KYUTAI:
        return kyutai_tts.Kyutai(repo or kyutai_tts.REPO, **chosen)
    return tts.Command(name, **chosen)
