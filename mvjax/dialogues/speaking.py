"""Speaks written dialogues: text -> stereo audio with word times, in moshi-finetune's format, in parallel.

    DIR/part-00000.jsonl, DIR/part-00000/ID.wav .json .image      what `mvjax data encode` reads

A part's manifest is written when the part is finished. Run again to continue: dialogues of finished parts
are skipped, unfinished parts are made anew, failures are retried.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import multiprocessing
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import process
from pathlib import Path
from typing import IO

import msgspec
import numpy as np

from mvjax import messages, types
from mvjax.data.ingest import items, moshi_finetune, sources
from mvjax.data.speech import spoken
from mvjax.dialogues import conversation, store, tts

FAILURES = "not_spoken.log"  # in DIR: a JSON object a line
_MOST_IN_PART = 64  # dialogues, which a killed run may lose per process
_PARTS_PER_JOB = 4
_GIVE_UP = 10  # failed dialogues, if none was spoken
_PART = re.compile(r"part-(\d{5})")
_Part = tuple[str, Sequence[store.WrittenDialogue]]  # its name and dialogues


@dataclasses.dataclass
class SpeakSummary:
    """The outcome of a run, counted in dialogues; `seconds` of audio and `gaps` are this run's."""

    spoken: int = 0
    skipped: int = 0  # as an earlier run spoke them
    failed: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (id, reason)
    seconds: float = 0.0
    gaps: list[float] = dataclasses.field(default_factory=list)  # seconds between utterances

    def text(self) -> str:
        """Formats the summary for a terminal."""
        line = (
            f"{self.spoken} spoken ({self.seconds / 3600:.2f} hours), {self.skipped} skipped as done before,"
            f" {len(self.failed)} failed"
        )
        if self.gaps:
            low, middle, high = np.percentile(self.gaps, [10, 50, 90])
            early = 100 * np.mean(np.array(self.gaps) < 0)
            line += (
                f"\n  gaps between utterances: median {middle:.2f} s, 80% within {low:.2f} to {high:.2f} s;"
                f" {early:.0f}% overlap"
            )
        return line + messages.lines(": ".join(failure) for failure in self.failed)


def speak(
    source: Path,
    out: Path,
    voices: tts.Tts,
    *,
    jobs: int = 1,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> SpeakSummary:
    """Speaks the dialogues of `source` (as `store.read`) that are not in the folder `out` yet.

    Pictures are relative to the folder of `source`. `jobs` processes work (1: only this one); `report` is
    called with one line per part. A dialogue's voices, gaps and loudness depend on `seed` and its id alone.

    What cannot be read or spoken is listed in the summary and in DIR/not_spoken.log; the rest goes on.

    Raises:
      ValueError: if no dialogue can be spoken, with the reasons; at the latest after ten.
    """
    if jobs < 1:
        raise ValueError(f"speak: expected jobs >= 1, got {jobs}")
    out.mkdir(parents=True, exist_ok=True)
    done = _finished(out)
    total = SpeakSummary()
    wanted = list(store.read(source, bad=lambda *line: total.failed.append(line)))
    unread = list(total.failed)
    left = [dialogue for dialogue in wanted if dialogue.id not in done]
    total.skipped = len(wanted) - len(left)
    make = functools.partial(_make, out, source.parent, voices, seed)
    with (out / FAILURES).open("wb") as failures:
        _list(unread, failures)
        for part in _made(make, _parts(left, out, jobs), jobs):
            total.spoken += part.spoken
            total.seconds += part.seconds
            total.gaps += part.gaps
            total.failed += part.failed
            _list(part.failed, failures)
            if len(total.failed) - len(unread) >= _GIVE_UP:
                _refuse_nothing_spoken(source, total)
            count = len(left) + len(unread)
            report(f"dialogues: {total.spoken}/{count} spoken, {len(total.failed)} failed")
    _refuse_nothing_spoken(source, total)
    return total


def _list(failed: Sequence[tuple[str, str]], file: IO[bytes]) -> None:
    for name, reason in failed:
        file.write(msgspec.json.encode({"id": name, "reason": reason}) + b"\n")
    file.flush()


def _refuse_nothing_spoken(source: Path, total: SpeakSummary) -> None:
    if total.failed and not total.spoken + total.skipped:
        reasons = messages.lines((": ".join(failure) for failure in total.failed), shown=3)
        tried = messages.counted(len(total.failed), "dialogue")
        raise ValueError(f"{source}: of the first {tried} none can be spoken:{reasons}")


def say(
    dialogue: store.WrittenDialogue, voices: tts.Tts, *, seed: int, image: bytes | None = None
) -> tuple[spoken.Spoken, tuple[float, ...]]:
    """Synthesizes one dialogue, and tells its gaps; raises ValueError if an utterance cannot be spoken."""
    digest = hashlib.sha256(f"{seed}/{dialogue.id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    user = voices.users[int(rng.integers(len(voices.users)))]
    voice = {"assistant": voices.assistant, "user": user}
    lines = [
        tts.TtsLine(turn.text, voice[turn.speaker], int(rng.integers(2**31)))
        for turn in dialogue.turns
    ]
    speakers = [turn.speaker for turn in dialogue.turns]
    made = conversation.converse(speakers, voices.speak(lines), rng)
    return spoken.Spoken(
        id=dialogue.id,
        audio=made.audio,
        words=made.words,
        turns=dialogue.turns,
        user_words=made.user_words,
        kinds=dialogue.kinds,
        facts=dialogue.facts,
        image=image,
    ), made.gaps


def _parts(left: Sequence[store.WrittenDialogue], out: Path, jobs: int) -> list[_Part]:
    """Divides the dialogues into parts, numbered on from those in `out`."""
    size = max(1, min(_MOST_IN_PART, -(-len(left) // (_PARTS_PER_JOB * jobs))))
    numbers = [int(m[1]) for f in out.glob("*.jsonl") if (m := _PART.fullmatch(f.stem))]
    first = max(numbers, default=-1) + 1
    starts = range(0, len(left), size)
    return [(f"part-{first + n:05d}", left[i : i + size]) for n, i in enumerate(starts)]


def _made(
    make: Callable[[_Part], SpeakSummary], parts: Sequence[_Part], jobs: int
) -> Iterator[SpeakSummary]:
    """Yields the outcome of each part, as they are finished."""
    if jobs == 1 or len(parts) <= 1:
        yield from map(make, parts)
        return
    # Ctrl-C reaches every process of a terminal: workers then end without a word.
    quiet = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(jobs, len(parts)), context, **quiet) as pool:
        running = [pool.submit(make, part) for part in parts]
        try:
            for future in concurrent.futures.as_completed(running):
                yield future.result()
        except process.BrokenProcessPool as error:
            raise ValueError(
                "a process that spoke dialogues died (out of memory?): run again, with fewer --jobs"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _make(out: Path, pictures: Path, voices: tts.Tts, seed: int, part: _Part) -> SpeakSummary:
    """Speaks and writes a part; images are relative to `pictures`."""
    name, dialogues = part
    summary = SpeakSummary()

    def said() -> Iterator[spoken.Spoken]:
        for dialogue in dialogues:
            try:
                image = items.load_image(pictures / dialogue.image) if dialogue.image else None
                made, gaps = say(dialogue, voices, seed=seed, image=image)
                seconds = made.samples().shape[1] / types.SAMPLE_RATE
            except ImportError:  # of the synthesizer: no dialogue can be spoken
                raise
            except Exception as error:  # whatever a synthesizer raises is about this dialogue alone
                named = (
                    "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
                )
                summary.failed.append((dialogue.id, f"{named}{error}"))
                continue
            summary.spoken += 1
            summary.seconds += seconds
            summary.gaps += gaps
            yield made

    moshi_finetune.write(out, said(), name=name)
    return summary


def _finished(out: Path) -> set[str]:
    """Ids of the dialogues in finished parts; removes unfinished ones."""
    for folder in out.iterdir():
        if _PART.fullmatch(folder.name) and not folder.with_name(f"{folder.name}.jsonl").is_file():
            shutil.rmtree(folder)
    done = set()
    for listing in sorted(out.glob("part-*.jsonl")):
        try:
            for line in listing.read_bytes().splitlines():
                beside = (out / msgspec.json.decode(line, type=_Listed).path).with_suffix(".json")
                done.add(msgspec.json.decode(beside.read_bytes(), type=_Named).id)
        except (*sources.DAMAGE, FileNotFoundError) as error:
            raise ValueError(
                f"{listing}: damaged, or what it lists is: {error}; delete this file: its dialogues are"
                " spoken again"
            ) from error
    return done


class _Listed(msgspec.Struct):
    path: str


class _Named(msgspec.Struct):
    id: str
