"""Small datasets in the form in which the real ones are published: same names, keys, columns and types."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

URLS = [f"https://example.org/pictures/{n}.jpg?w=2&x={n}" for n in range(6)]


def picture(n: int, form: str = "JPEG") -> bytes:
    """A picture that differs from the others."""
    pixels = np.random.default_rng(n).integers(0, 256, (9 + n % 5, 14, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=form)
    return file.getvalue()


def save(path: Path, content: bytes) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return content


def save_json(path: Path, content) -> None:
    save(path, json.dumps(content).encode())


def coco_picture(root: Path, n: int, folder: str = "val2014") -> bytes:
    return save(root / folder / f"COCO_{folder}_{n:012d}.jpg", picture(n))


def coco(root: Path) -> None:
    """Image 1 to 3: two captions each; 1 in test, 2 in restval, 3 in train."""

    def image(n, split, folder, raws):
        coco_picture(root, n, folder)
        sentences = [
            {"tokens": raw.lower().split(), "raw": raw, "imgid": n, "sentid": 10 * n + k}
            for k, raw in enumerate(raws)
        ]
        return {
            "filepath": folder,
            "sentids": [s["sentid"] for s in sentences],
            "filename": f"COCO_{folder}_{n:012d}.jpg",
            "imgid": n,
            "split": split,
            "sentences": sentences,
            "cocoid": n,
        }

    content = [
        image(1, "test", "val2014", ["A man with a red helmet.", "a man on a  moped\n"]),
        image(2, "restval", "val2014", ["Two dogs run", "  "]),
        image(3, "train", "train2014", ["A cat.", "a cat sleeps"]),
    ]
    save_json(root / "dataset_coco.json", {"images": content, "dataset": "coco"})


def vqav2(root: Path) -> None:
    """Questions 458752000 and 458752001 about one image, 262148000 without annotation."""
    asked = [(458752, 0, "What is this  photo taken looking through?"), (458752, 1, "Red?")]
    asked += [(262148, 0, "Where is he looking?")]
    header = {
        "info": {"version": "2.0"},
        "data_type": "mscoco",
        "data_subtype": "train2014",
        "license": {"name": "CC"},
    }
    questions = [{"image_id": i, "question": q, "question_id": 1000 * i + n} for i, n, q in asked]
    annotations = [
        {
            "question_type": "what is this",
            "multiple_choice_answer": best,
            "answers": [
                {"answer": a, "answer_confidence": "yes", "answer_id": k + 1}
                for k, a in enumerate([best] * 8 + ["netting", "mesh"])
            ],
            "image_id": 458752,
            "answer_type": kind,
            "question_id": 458752000 + n,
        }
        for n, (best, kind) in enumerate((("net", "other"), ("no", "yes/no")))
    ]
    save_json(
        root / "v2_OpenEnded_mscoco_train2014_questions.json",
        header | {"task_type": "Open-Ended", "questions": questions},
    )
    save_json(root / "v2_mscoco_train2014_annotations.json", header | {"annotations": annotations})
    coco_picture(root, 458752, "train2014")


def ocr_vqa(root: Path) -> None:
    """One book in train with two questions, one in test as GIF, one with an answer too few."""

    def book(split, extension, questions, answers):
        return {
            "imageURL": f"http://ecx.images-amazon.com/images/I/61Y5cOdHJbL{extension}",
            "questions": questions,
            "answers": answers,
            "title": "Mom's Family Wall Calendar 2016",
            "authorName": "Sandra Boynton",
            "genre": "Calendars",
            "split": split,
        }

    content = {
        "761183272": book(1, ".jpg", ["Who wrote this book?", "Is it a comic?"], ["Boynton", "No"]),
        "1439819742": book(3, ".gif", ["What is the genre?"], ["Calendars"]),
        "8475": book(1, ".jpg", ["Who wrote this?", "What year?"], ["Ann"]),
    }
    save_json(root / "dataset.json", content)
    save(root / "images" / "761183272.jpg", picture(1))
    save(root / "images" / "1439819742.gif", picture(2, "GIF"))


def tallyqa(root: Path) -> None:
    """A question of Visual Genome, complex, and one of COCO without `issimple`."""
    entries = [
        {
            "answer": 4,
            "data_source": "imported_genome",
            "image": "VG_100K_2/2410408.jpg",
            "image_id": 92410408,
            "issimple": False,
            "question": "How many headlights does the black bus have?",
            "question_id": 30095774,
        },
        {
            "answer": 0,
            "data_source": "imported_vqa",
            "image": "train2014/COCO_train2014_000000458752.jpg",
            "image_id": 458752,
            "question": "How many dogs?",
            "question_id": 5,
        },
    ]
    save_json(root / "train.json", entries)
    save(root / "VG_100K_2" / "2410408.jpg", picture(4))
    coco_picture(root, 458752, "train2014")


def docvqa_entries() -> list[dict]:
    return [
        {
            "questionId": 337 + n,
            "question": "what is the date mentioned in this letter?",
            "question_types": ["handwritten", "form"],
            "image": f"documents/xnbl0037_{n}.png",
            "docId": 279,
            "ucsf_document_id": "xnbl0037",
            "ucsf_document_page_no": "1",
            "answers": answers,
            "data_split": "train",
        }
        for n, answers in enumerate((["1/8/93", "Jan 8"], []))
    ]


def docvqa(root: Path) -> None:
    """The challenge's files: one question with two accepted answers, one with none."""
    save_json(
        root / "spdocvqa_qas" / "train_v1.0_withQT.json",
        {
            "dataset_name": "SP-DocVQA",
            "dataset_version": "1.0",
            "dataset_split": "train",
            "data": docvqa_entries(),
        },
    )
    for n in range(2):
        save(root / "spdocvqa_images" / f"xnbl0037_{n}.png", picture(n, "PNG"))


def docvqa_hub(root: Path) -> None:
    """The same as Parquet, with the pages inside; the first row lacks its page."""
    rows = [docvqa_entries()[0] | {"questionId": "1"}, *docvqa_entries()]
    for n, row in enumerate(rows):
        row["questionId"] = str(row["questionId"])
        row["image"] = {"bytes": picture(n, "PNG") if n else None, "path": row["image"]}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    strings = pa.list_(pa.string())
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("questionId", "question")),
            *(("question_types", strings), ("image", image), ("docId", pa.int64())),
            *((name, pa.string()) for name in ("ucsf_document_id", "ucsf_document_page_no")),
            *(("answers", strings), ("data_split", pa.string())),
        ]
    )
    save_table(root / "DocVQA" / "train-00000-of-00001.parquet", rows, schema)


def save_table(path: Path, rows: list[dict], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=2)


def rendered_text(root: Path) -> None:
    """Two shards; the second holds a picture without annotation and one without text."""

    def annotation(lines):
        boxes = [[[1, 2], [3, 4]] for _ in lines]
        return {"ocr_annotation": {"text": lines, "bounding_boxes": boxes}, "hdri": "a.exr"}

    samples = [
        ("000000.tar", "0", [".json", ".png"], ["The quick", "brown  fox"]),
        ("000000.tar", "1", [".json", ".png"], ["One line"]),
        ("remaining/000009.tar", "2", [".png"], []),
        ("remaining/000009.tar", "3", [".json", ".png"], [" "]),
    ]
    for shard in ("000000.tar", "remaining/000009.tar"):
        (root / shard).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / shard, "w") as archive:
            for of, key, suffixes, lines in samples:
                for suffix in suffixes if of == shard else ():
                    data = json.dumps(annotation(lines)).encode()
                    data = data if suffix == ".json" else picture(int(key), "PNG")
                    member = tarfile.TarInfo(f"{key}{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def docci(root: Path) -> None:
    """One description in train, one in qual_dev, and a damaged line."""
    names = [("train_00000", "train"), ("qual_dev_00000", "qual_dev")]
    lines = [
        json.dumps(
            {
                "example_id": name,
                "split": split,
                "image_file": f"{name}.jpg",
                "description": f"An indoor angled down view of {name}. It is   bright.",
            }
        )
        for name, split in names
    ]
    content = "\n".join([lines[0], '{"example_id": "train_0', lines[1]]) + "\n"
    save(root / "docci_descriptions.jsonlines", content.encode())
    for n, (name, _) in enumerate(names):
        save(root / "images" / f"{name}.jpg", picture(n))


def pixmo_cap(root: Path) -> None:
    """Four captions: two of one URL, one empty, one whose picture was never downloaded."""
    strings = pa.list_(pa.string())
    schema = pa.schema(
        [("image_url", pa.string()), ("caption", pa.string()), ("transcripts", strings)]
    )
    captions = [(0, "A long caption."), (0, "Another of it."), (1, ""), (2, "Lost.")]
    rows = [
        {"image_url": URLS[n], "caption": caption, "transcripts": ["so here we see"]}
        for n, caption in captions
    ]
    save_table(root / "data" / "train-00000-of-00004.parquet", rows, schema)
    save(root / "images" / hashlib.sha256(URLS[0].encode()).hexdigest(), picture(0))


def pixelprose(root: Path, images: Path) -> None:
    """Two parts, and the pictures as img2dataset leaves them; the third was not reachable."""
    columns = ["uid", "url", "key", "status", "original_caption", "vlm_model", "vlm_caption"]
    schema = pa.schema([(name, pa.string()) for name in columns])
    schema = schema.append(pa.field("aesthetic_score", pa.float64()))
    for part, numbers in (("cc12m", (0, 1)), ("redcaps", (2,))):
        rows = [
            {
                "uid": f"uid{n}",
                "url": URLS[n],
                "key": f"{n:09d}",
                "status": "success",
                "original_caption": "buy it",
                "vlm_model": "gemini-pro-vision",
                "vlm_caption": f" This image displays picture {n}. It is sharp.",
                "aesthetic_score": 4.5,
            }
            for n in numbers
        ]
        save_table(root / "data" / f"vlm_captions_{part}_00.parquet", rows, schema)
    names = ["url", "caption", "key", "status", "error_message", "sha256"]
    schema = pa.schema([(name, pa.string()) for name in names])
    rows = [
        {"url": URLS[n], "caption": "", "key": f"00012{n:04d}", "status": status}
        for n, status in enumerate(("success", "success", "failed_to_download"))
    ]
    save_table(images / "00012.parquet", rows, schema)
    for n in range(2):
        save(images / "00012" / f"00012{n:04d}.jpg", picture(n))
