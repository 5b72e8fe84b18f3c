"""Small datasets of speech in the form in which the real ones are published; as `released`."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import released
import soundfile


def tone(seconds: float, rate: int, hertz: float) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def audio_bytes(seconds: float, rate: int, form: str, hertz: float = 440) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(seconds, rate, hertz), rate, format=form)
    return file.getvalue()


def babillage(root: Path, pictures: Path) -> None:
    """coco: two questions, the second with an alignment too few; ocrvqa one; vqav2 one."""
    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    side = [("audio", audio), ("transcript", pa.list_(pa.string()))]
    side += [("alignment", pa.list_(pa.list_(pa.float64())))]
    fields = {s: [(f"{s}_{name}", kind) for name, kind in side] for s in ("question", "answer")}

    def said(name, words, seconds, rate, form="WAV"):
        step = seconds / len(words)
        return {
            f"{name}_audio": {"bytes": audio_bytes(seconds, rate, form), "path": "a.wav"},
            f"{name}_transcript": words,
            f"{name}_alignment": [[k * step, (k + 0.9) * step] for k in range(len(words))],
        }

    both = pa.schema(
        [("sample_id", pa.int64()), ("image_id", pa.int64())]
        + fields["question"]
        + fields["answer"]
    )
    asked = said("question", ["What's", "here?"], 0.5, 24000, "OGG")
    rows = [
        {"sample_id": n, "image_id": 1}
        | asked
        | said("answer", ["I", "see", "a", "man."], 1.0, 16000)
        for n in (770337, 770338)
    ]
    rows[1]["answer_alignment"] = rows[1]["answer_alignment"][:-1]
    released.save_table(root / "coco" / "test-00000-of-00004.parquet", rows, both)
    ocr = [rows[0] | {"image_id": 761183272}]
    released.save_table(root / "ocrvqa" / "validation-00000-of-00014.parquet", ocr, both)
    one = pa.schema([("sample_id", pa.int64()), *fields["question"]])
    vqa = [{"sample_id": 2007} | asked, {"sample_id": 9007} | asked]
    released.save_table(root / "vqav2" / "validation-00000-of-00010.parquet", vqa, one)
    released.coco_picture(pictures, 1)
    released.coco_picture(pictures, 2)
    released.save(pictures / "images" / "761183272.jpg", released.picture(3))


def moshi_finetune(root: Path, rate: int = 44100) -> None:
    """Two dialogues as `annotate.py` leaves them, and one with a word of the user."""
    lines = []
    for n, seconds in enumerate((1.5, 2.25, 1.0)):
        path = root / "data_stereo" / f"{'abc'[n]}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        sides = [tone(seconds, rate, 300 + 100 * n), 0 * tone(seconds, rate, 1)]
        soundfile.write(path, np.stack(sides, 1), rate)
        words = [["Hello", [0.24, 0.61], "SPEAKER_MAIN"], ["there.", [0.7, 0.98], "SPEAKER_MAIN"]]
        if n == 2:
            words += [["Hi!", [0.0, 0.2], "SPEAKER_OTHER"]]
        released.save_json(path.with_suffix(".json"), {"alignments": words})
        lines.append({"path": f"data_stereo/{path.name}", "duration": seconds + 0.001})
    released.save(
        root / "mycooldataset.jsonl", "".join(json.dumps(x) + "\n" for x in lines).encode()
    )
