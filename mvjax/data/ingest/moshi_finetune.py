"""moshi-finetune's format: a manifest (jsonl) of stereo files, each with its word times beside it.

Published in github.com/kyutai-labs/moshi-finetune (README, `annotate.py`); kyutai/DailyTalkContiguous has it:

    data.jsonl      {"path": "data_stereo/a.wav", "duration": 24.52}      relative to the jsonl, one a line
    a.wav           left the assistant, right the user, any rate
    a.json          {"alignments": [["hello", [0.24, 0.61], "SPEAKER_MAIN"], ...]}

Synthetic dialogues are written in this format too, with further keys in a.json, which moshi-finetune ignores,
as it ignores words of other speakers than SPEAKER_MAIN:

    "id": "...", "kinds": ["LOC"], "facts": {...}, "turns": [["user", "Where is it?"], ["assistant", "..."]],
    "image": "a.png"                                                       relative to a.json
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mvjax import files, run_folder, types
from mvjax.data.ingest import items, sources
from mvjax.data.records import dataset
from mvjax.data.speech import spoken

MAIN, USER = "SPEAKER_MAIN", "SPEAKER_USER"
OWN_LISTS = (run_folder.BAD_RECORDS, ".dropped.jsonl")  # ends of their names
_LONGEST_STEM = 200  # bytes of a file name without its suffixes; systems take 255 with them
_TOLERANCE = 0.5  # seconds between a listed duration and the file's


class _Listed(msgspec.Struct):
    path: str
    duration: float


class _AnyLine(msgspec.Struct):
    path: Any = None


class _AlignedWord(msgspec.Struct, array_like=True):
    text: str
    times: tuple[float, float]
    speaker: str


class _Transcript(msgspec.Struct, omit_defaults=True):
    alignments: list[_AlignedWord]
    id: str | None = None
    kinds: tuple[str, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    facts: dict[str, str | int] | None = None
    image: str | None = None


def read(
    source: Path,
    *,
    split: str = "all",
    images: Sequence[Path] = (),
    skips: items.SkippedItems,
    untranscribed: bool = False,
) -> Iterator[spoken.Spoken]:
    """Yields the dialogues of a manifest (or of every manifest below a folder); audio stays on disk.

    The id is that of the transcript, else the listed path. Missing turns are made from the words.
    Times are clipped to the audio, and words after its end left out. Damaged and empty dialogues are skipped,
    and so is audio without a transcript, unless `untranscribed`: it then has neither words nor turns, for
    `align.annotate`. Below a folder, lists that mvjax writes and other jsonl without paths are no manifests.
    """
    del split, images
    folder = not source.is_file()
    for listing in sources.the_files(source, "**/*.jsonl") if folder else [source]:
        if folder and listing.name.endswith(OWN_LISTS):
            continue
        if folder and not _is_manifest(listing):
            skips.add(
                str(listing.relative_to(source)), "not a manifest", "its first line has no path"
            )
            continue
        for place, listed in sources.json_lines(listing, msgspec.json.Decoder(_Listed), skips):
            path = listing.parent / listed.path
            try:
                dialogue = _dialogue(path, listed, skips, untranscribed=untranscribed)
            except FileNotFoundError as error:
                skips.add(place, "missing file", error)
            except (ValueError, OSError) as error:
                skips.add(place, "damaged item", error)
            else:
                if dialogue.turns or dialogue.words is None:
                    yield dialogue
                else:
                    skips.add(dialogue.id, "empty transcript", path)


def write(folder: Path, dialogues: Iterable[spoken.Spoken], *, name: str = "data") -> Path:
    """Writes FOLDER/NAME/ID.wav, .json and .image and, last, the manifest FOLDER/NAME.jsonl; returns it.

    A folder without a manifest is unfinished. Samples are stored with 16 bits. Ids that are too long for a
    file name are shortened, with a hash. Raises ValueError if two ids are the same, or a dialogue has no word
    times.
    """
    media = folder / name
    media.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    ids: set[str] = set()
    stems: set[str] = set()
    for dialogue in dialogues:
        if dialogue.id in ids:
            raise ValueError(f"{media}: expected ids that differ, {dialogue.id!r} does not")
        ids.add(dialogue.id)
        stem = _stem(dialogue.id, stems)
        stems.add(stem.casefold())
        if dialogue.words is None:
            raise ValueError(f"{dialogue.id}: expected word times; make them with align.annotate")
        samples = dialogue.samples()
        wav = media / f"{stem}.wav"
        spoken.write_audio(wav, samples)
        save_transcript(media / f"{stem}.json", dialogue)
        seconds = samples.shape[1] / types.SAMPLE_RATE
        lines.append({"path": f"{name}/{wav.name}", "duration": seconds})
    listing = folder / f"{name}.jsonl"
    files.write_atomic(listing, msgspec.json.Encoder().encode_lines(lines))
    return listing


def _stem(name: str, taken: set[str]) -> str:
    """The file name of an id; too long, or that of another where case does not count, it ends in a hash."""
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    if len(stem.encode()) <= _LONGEST_STEM and stem.casefold() not in taken and stem.strip("."):
        return stem
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    short = stem.encode()[: _LONGEST_STEM - len(digest) - 1].decode(errors="ignore")
    return f"{short}-{digest}"


def save_transcript(path: Path, dialogue: spoken.Spoken) -> None:
    """Writes A.json (everything but the audio), and A.image if there is an image."""
    said = [(MAIN, word) for word in dialogue.words or ()]
    said += [(USER, word) for word in dialogue.user_words or ()]
    transcript: dict[str, Any] = {
        # By start, as upstream searches them by bisection.
        "alignments": [
            [word.text, [word.start, word.end], speaker]
            for speaker, word in sorted(said, key=lambda item: item[1].start)
        ],
        "id": dialogue.id,
        "kinds": dialogue.kinds,
        "turns": [[turn.speaker, turn.text] for turn in dialogue.turns],
    }
    if dialogue.facts:
        transcript["facts"] = dialogue.facts
    if dialogue.image is not None:
        picture = path.with_suffix(".image")
        files.write_atomic(picture, dialogue.image)
        transcript["image"] = picture.name
    files.write_atomic(path, msgspec.json.encode(transcript))


def _is_manifest(listing: Path) -> bool:
    """Whether the first line has a path, or is damaged, which the reader then tells."""
    try:
        with listing.open("rb") as file:
            line = sources.without_mark(file.readline())
        return msgspec.json.decode(line, type=_AnyLine).path is not None
    except (*sources.DAMAGE, OSError):
        return True


def _dialogue(
    path: Path, listed: _Listed, skips: items.SkippedItems, *, untranscribed: bool
) -> spoken.Spoken:
    seconds = spoken.duration(path, channels=2)
    if abs(seconds - listed.duration) > _TOLERANCE:
        raise ValueError(
            f"{path}: expected {listed.duration:.2f} s as listed, it has {seconds:.2f} s;"
            " is it truncated?"
        )
    name = os.path.splitext(listed.path)[0]
    beside = path.with_suffix(".json")
    if not beside.is_file():
        if untranscribed:
            return spoken.Spoken(id=name, audio=path, words=None, turns=())
        raise FileNotFoundError(f"{beside}: no such transcript; an aligner can make word times")
    transcript = sources.decode_json(beside, msgspec.json.Decoder(_Transcript))
    name = transcript.id or name
    said = [_said(transcript, main=main) for main in (True, False)]
    words, user_words = spoken.fit_words(seconds, *said)
    skips.trim(name, spoken.LATE, sum(map(len, said)) - len(words) - len(user_words))
    turns = tuple(dataset.Turn(*turn) for turn in transcript.turns)
    return spoken.Spoken(
        id=name,
        audio=path,
        words=words,
        turns=turns or spoken.turns_of(words, user_words),
        user_words=user_words or None,
        kinds=transcript.kinds,
        facts=transcript.facts,
        image=items.load_image(beside.parent / transcript.image) if transcript.image else None,
    )


def _said(transcript: _Transcript, *, main: bool) -> list[dataset.Word]:
    """The words of the assistant, or of everyone else, in order of start."""
    said = [
        dataset.Word(word.text, *word.times)
        for word in transcript.alignments
        if (word.speaker == MAIN) == main and word.text.strip()
    ]
    return sorted(said, key=lambda word: word.start)
