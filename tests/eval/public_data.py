"""Small copies of the public benchmarks in the form in which they are published, below one root."""

import csv
import io
import sys
from pathlib import Path

import pyarrow as pa

sys.path.append(str(Path(__file__).parents[1] / "data"))
import released
import released_spoken

STRINGS = pa.list_(pa.string())


def write(root: Path) -> Path:
    """All of them; returns the root."""
    for dataset in (coco, vqav2, ocr_vqa, tallyqa, docvqa, mmlu, babillage):
        dataset(root)
    return root


def coco(root: Path) -> None:
    """Images 1 to 3 in test, 4 in val, of five captions each; the third of each is empty."""
    images = []
    for n in (1, 2, 3, 4):
        released.coco_picture(root / "coco", n)
        raws = [f"A {n} men ride.", f"{n} dogs.", "", f"a cat\nand {n} dogs", "two people"]
        images.append(
            {
                "filepath": "val2014",
                "filename": f"COCO_val2014_{n:012d}.jpg",
                "imgid": n,
                "split": "val" if n == 4 else "test",
                "sentences": [{"raw": r, "sentid": 10 * n + k} for k, r in enumerate(raws)],
                "cocoid": n,
            }
        )
    released.save_json(root / "coco" / "dataset_coco.json", {"images": images, "dataset": "coco"})


def vqav2(root: Path) -> None:
    """Five questions about image 1, one about image 2; the people differ on the first."""
    asked = [1000, 1001, 1002, 1003, 1004, 2000]
    answers = [["red"] * 7 + ["Red."] + ["blue\n"] * 2, *([["two"] * 10] * 5)]
    questions = [
        {"image_id": n // 1000, "question": f"What is  at {n}?", "question_id": n} for n in asked
    ]
    annotations = [
        {
            "question_id": n,
            "image_id": n // 1000,
            "answer_type": "other" if n == 1000 else "number",
            "question_type": "what",
            "multiple_choice_answer": given[0],
            "answers": [{"answer": a, "answer_id": k} for k, a in enumerate(given)],
        }
        for n, given in zip(asked, answers)
    ]
    folder = root / "vqav2"
    released.save_json(
        folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions}
    )
    released.save_json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})


def ocr_vqa(root: Path) -> None:
    """Two books in test, of which one's key begins with 0, and one in validation."""

    def book(split, questions, answers):
        url = "http://ecx.images-amazon.com/images/I/61Y5cOdHJbL.gif"
        return {"imageURL": url, "questions": questions, "answers": answers, "split": split}

    asked = ["Who wrote this book?", "What is the genre?"]
    books = {
        "0761183272": book(3, asked, ["J.R.R. Tolkien", "Calendars"]),
        "1439819742": book(3, asked[:1], ["Ann"]),
        "8475": book(2, asked[:1], ["Bo"]),
    }
    released.save_json(root / "ocr-vqa" / "dataset.json", books)
    for n, key in enumerate(books):
        released.save(root / "ocr-vqa" / "images" / f"{key}.gif", released.picture(n, "GIF"))


def tallyqa(root: Path) -> None:
    """A simple question about an image of COCO, and a complex one of Visual Genome."""
    images = ["val2014/COCO_val2014_000000000001.jpg", "VG_100K_2/2410408.jpg"]
    entries = [
        {"answer": 4 * n, "image": images[n], "issimple": n == 0, "question": "How many?", "question_id": n}
        for n in range(2)
    ]  # fmt: skip
    released.save_json(root / "tallyqa" / "test.json", entries)
    released.save(root / "visual-genome" / images[1], released.picture(7))


def _documents() -> list[dict]:
    return [
        {
            "questionId": 49150 + n,
            "question": f"What is item {n}?",
            "image": f"documents/page_{n}.png",
            "answers": answers,
            "data_split": "val",
        }
        for n, answers in enumerate((["1/8/93", "Jan  8"], [], ["7"]))
    ]


def docvqa(root: Path) -> None:
    """The challenge's files: three questions, one without an answer."""
    folder = root / "docvqa"
    released.save_json(folder / "val_v1.0_withQT.json", {"data": _documents()})
    for n in range(3):
        released.save(folder / "spdocvqa_images" / f"page_{n}.png", released.picture(n, "PNG"))


def docvqa_hub(root: Path) -> None:
    """The same as Parquet, with the pages inside."""
    rows = _documents()
    for n, row in enumerate(rows):
        content = {"bytes": released.picture(n, "PNG"), "path": row["image"]}
        row |= {"questionId": str(row["questionId"]), "image": content}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("questionId", pa.string()), ("question", pa.string()), ("image", image)]
    fields += [("answers", STRINGS), ("data_split", pa.string())]
    path = root / "docvqa" / "DocVQA" / "validation-00000-of-00001.parquet"
    released.save_table(path, rows, pa.schema(fields))


CAPITALS = [
    ("What is the capital of France?", ["Rome", "Paris", "Berlin", "Oslo"], 1),
    ('Which, of these, is a "dog"?', ["A cat, perhaps", "Ice", "A poodle", "None"], 2),
]


def mmlu(root: Path) -> None:
    """Hendrycks' files: two subjects."""
    for subject, (question, choices, answer) in zip(("geography", "animals"), CAPITALS):
        file = io.StringIO()
        csv.writer(file).writerow([question, *choices, "ABCD"[answer]])
        path = root / "mmlu" / "data" / "test" / f"{subject}_test.csv"
        released.save(path, file.getvalue().encode())


def mmlu_hub(root: Path) -> None:
    """The same as Parquet."""
    rows = [
        {"question": question, "subject": "capitals", "choices": choices, "answer": answer}
        for question, choices, answer in CAPITALS
    ]
    fields = [("question", pa.string()), ("subject", pa.string())]
    fields += [("choices", STRINGS), ("answer", pa.int64())]
    path = root / "mmlu" / "all" / "test-00000-of-00001.parquet"
    released.save_table(path, rows, pa.schema(fields))


def babillage(root: Path) -> None:
    """Two requests for image 1 of COCO, one for 2 and 3; three questions each about books and of VQAv2."""
    folder = root / "babillage"
    rows = [
        {"sample_id": n, "image_id": n // 10} | _said("question", f"What's here {n}?", n)
        | _said("answer", f"I see {n}.", 1)
        for n in (31, 13, 11, 20)
    ]  # fmt: skip
    released.save_table(
        folder / "coco" / "test-00000-of-00001.parquet", rows, _schema(answers=True)
    )
    books = [
        (761183272, "So who is it that wrote this book?", "It was written by J.R.R. Tolkien."),
        (761183272, "Could you tell me the genre?", "It is a calendar, so Calendars."),
        (1439819742, "Who wrote this?", "Ann did."),
    ]
    rows = [
        {"sample_id": n, "image_id": key}
        | _said("question", question, n)
        | _said("answer", answer, 1)
        for n, (key, question, answer) in enumerate(books)
    ]
    released.save_table(
        folder / "ocrvqa" / "test-00000-of-00001.parquet", rows, _schema(answers=True)
    )
    rows = [
        {"sample_id": n} | _said("question", f"What's at {n}?", n % 7) for n in (1000, 1003, 2000)
    ]
    path = folder / "vqav2" / "validation-00000-of-00001.parquet"
    released.save_table(path, rows, _schema(answers=False))


def _said(name: str, text: str, tenths: int) -> dict:
    words = text.split()
    content = released_spoken.audio_bytes(0.1 + tenths / 10, 24000, "WAV")
    return {
        f"{name}_audio": {"bytes": content, "path": "a.wav"},
        f"{name}_transcript": words,
        f"{name}_alignment": [[0.0, 0.1]] * len(words),
    }


def _schema(*, answers: bool) -> pa.Schema:
    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields = [("sample_id", pa.int64()), *([("image_id", pa.int64())] if answers else [])]
    for side in ("question", "answer") if answers else ("question",):
        fields += [(f"{side}_audio", audio), (f"{side}_transcript", STRINGS)]
        fields += [(f"{side}_alignment", pa.list_(pa.list_(pa.float64())))]
    return pa.schema(fields)
