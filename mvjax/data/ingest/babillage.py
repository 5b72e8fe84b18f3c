"""Babillage: questions about images spoken by users, and (but for VQAv2) spoken answers.

Published on huggingface.co as kyutai/Babillage: `coco/validation-*.parquet`, `coco/test-*.parquet`, the same
in `ocrvqa/`, and `vqav2/validation-*.parquet`, with the columns `sample_id`, `image_id`, and for `question`
and `answer` each `_audio` {"bytes", "path"}, `_transcript` (words) and `_alignment` ([start, end] seconds of
each word). vqav2 has neither `image_id` nor answers; its sample_id is VQAv2's question id.

A dialogue is the question on the user's side and, GAP seconds after its end, the answer on the assistant's.
The pictures are those of the dataset that is spoken: COCO's `val2014/`, or OCR-VQA's `images/KEY.jpg`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from mvjax import types
from mvjax.data.ingest import items, sources
from mvjax.data.records import dataset
from mvjax.data.speech import spoken

GAP = 0.4  # seconds between question and answer; our choice
TAIL = 2.0  # seconds of silence in which to answer a question that has no spoken answer; our choice
_QUESTIONS_PER_IMAGE = 1000  # VQAv2: question id = image id x 1000 + n


class _SpokenQuestion(msgspec.Struct):
    sample_id: int
    question_audio: sources.Media | None
    question_transcript: list[str] | None
    question_alignment: list[list[float]] | None


class _Pair(_SpokenQuestion):
    image_id: int
    answer_audio: sources.Media | None
    answer_transcript: list[str] | None
    answer_alignment: list[list[float]] | None


def read(
    source: Path, *, split: str, images: Sequence[Path], skips: items.SkippedItems
) -> Iterator[spoken.Spoken]:
    """Yields the dialogues of a part, such as "coco-test"; raises ValueError without image folders."""
    if not images:
        raise ValueError(f"{source}: has no pictures; name the folders of COCO's or OCR-VQA's")
    part, _, of = split.partition("-")
    paths = sources.the_files(source, f"{part}/{of}-*.parquet")
    kind = _SpokenQuestion if part == "vqav2" else _Pair
    for place, row in sources.parquet_rows(paths, kind, skips, rows_at_once=16):
        name = f"babillage-{split}-{row.sample_id}"
        answered = isinstance(row, _Pair)
        image_id = row.image_id if answered else row.sample_id // _QUESTIONS_PER_IMAGE
        try:
            image = items.load_image(_picture(images, part, image_id))
            dialogue = _dialogue(name, row, image, image_id)
        except FileNotFoundError as error:
            skips.add(name, "missing image", error)
        except (ValueError, OSError) as error:
            skips.add(name, "damaged item", f"{place}: {error}")
        else:
            said = (
                getattr(row, f"{side}_transcript", None) or () for side in ("question", "answer")
            )
            count = sum(bool(text.strip()) for texts in said for text in texts)
            kept = len(dialogue.words or ()) + len(dialogue.user_words or ())
            skips.trim(name, spoken.LATE, count - kept)
            yield dialogue


def _picture(folders: Sequence[Path], part: str, image_id: int) -> Path:
    if part == "ocrvqa":
        roots = [folder for root in folders for folder in (root / "images", root)]
        return sources.find_image(roots, str(image_id), suffixes=sources.IMAGE_SUFFIXES)
    candidates = [
        sources.find_image(folders, f"{folder}/COCO_{folder}_{image_id:012d}.jpg")
        for folder in ("val2014", "train2014")
    ]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _dialogue(name: str, row: _SpokenQuestion, image: bytes, image_id: int) -> spoken.Spoken:
    question, user_words = _said(row, "question", 0.0)
    start = len(question) + round(GAP * types.SAMPLE_RATE)
    if isinstance(row, _Pair):
        answer, words = _said(row, "answer", start / types.SAMPLE_RATE)
    else:
        answer, words = np.zeros(round(TAIL * types.SAMPLE_RATE), np.float32), ()
    audio = np.zeros((2, start + len(answer)), np.float32)
    audio[0, start:] = answer
    audio[1, : len(question)] = question
    turns = [dataset.Turn("user", " ".join(word.text for word in user_words))]
    if words:
        turns.append(dataset.Turn("assistant", " ".join(word.text for word in words)))
    return spoken.Spoken(
        id=name,
        audio=audio,
        words=words,
        turns=tuple(turns),
        user_words=user_words,
        kinds=("question",),
        facts={"sample_id": row.sample_id, "image_id": image_id},
        image=image,
    )


def _said(row: _SpokenQuestion, side: str, start: float) -> tuple[np.ndarray, tuple]:
    """The samples of one side, and its words at their times after `start` seconds."""
    texts = getattr(row, f"{side}_transcript") or []
    times = getattr(row, f"{side}_alignment") or []
    if not any(text.strip() for text in texts):
        raise ValueError(f"{side}_transcript: expected words, got {texts}")
    if len(texts) != len(times) or any(len(span) != 2 for span in times):
        raise ValueError(
            f"{side}_alignment: expected [start, end] for each of {len(texts)} words, got {times}"
        )
    audio = getattr(row, f"{side}_audio")
    if audio is None or not audio.content:
        raise ValueError(f"{side}_audio: expected the bytes of an audio file, got none")
    (samples,) = spoken.read_audio(audio.content, channels=1)
    words = [dataset.Word(t.strip(), *span) for t, span in zip(texts, times) if t.strip()]
    (fitted,) = spoken.fit_words(len(samples) / types.SAMPLE_RATE, words)
    return samples, tuple(dataset.Word(w.text, w.start + start, w.end + start) for w in fitted)
