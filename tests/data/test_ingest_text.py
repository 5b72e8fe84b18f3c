import json

import pyarrow as pa
import pytest
import released
from pyarrow import parquet

from mvjax import cli
from mvjax.data.ingest import catalog, items, pixmo_cap, sources, templates, write
from mvjax.data.records import dataset


def ingest(root, name, source, **options):
    """(id -> record, id -> reason of skipped items)."""
    found = write.write_text(name, source, root / name, workers=2, **options)
    with found.listing.open() as lines:
        skipped = {line["id"]: line["reason"] for line in map(json.loads, lines)}
    assert sum(found.skipped.values()) == len(skipped)
    reader = dataset.RecordReader(root / name, expected=None)
    return {record.id: record for record in reader}, skipped


def said(record):
    user, assistant = record.turns
    assert (user.speaker, assistant.speaker) == ("user", "assistant")
    return user.text, assistant.text


def test_coco(tmp_path):
    released.coco(tmp_path / "coco")
    found, skipped = ingest(tmp_path, "coco", tmp_path / "coco", split="test")
    assert list(found) == ["coco-test-10", "coco-test-11"] and not skipped
    request, caption = said(found["coco-test-11"])
    assert request in templates.CAPTION_REQUESTS
    assert caption == "A man on a moped."
    assert found["coco-test-10"].image == released.picture(1)
    assert found["coco-test-10"].kinds == ("caption",)
    assert found["coco-test-10"].facts == {"image_id": 1}
    found, skipped = ingest(tmp_path, "coco", tmp_path / "coco")
    assert list(found) == ["coco-train-20", "coco-train-30", "coco-train-31"]  # with restval
    assert skipped == {"coco-train-21": "empty caption"}
    assert dataset.RecordReader(tmp_path / "coco", expected=None).index.images[0].count == 2


def test_vqav2(tmp_path):
    released.vqav2(tmp_path / "vqa")
    found, skipped = ingest(tmp_path, "vqav2", tmp_path / "vqa")
    assert list(found) == ["vqav2-train-458752000", "vqav2-train-458752001"]
    assert skipped == {"vqav2-train-262148000": "no answer"}
    record = found["vqav2-train-458752000"]
    assert said(record) == ("What is this photo taken looking through?", "net")
    assert record.kinds == ("question", "other")
    assert record.facts["answers"].split("\n") == ["net"] * 8 + ["netting", "mesh"]
    assert (record.facts["image_id"], record.facts["question_id"]) == (458752, 458752000)
    assert record.image == released.picture(458752)


def test_ocr_vqa(tmp_path):
    released.ocr_vqa(tmp_path / "ocr")
    found, skipped = ingest(tmp_path, "ocr-vqa", tmp_path / "ocr")
    assert [said(r) for r in found.values()] == [
        ("Who wrote this book?", "Boynton"),
        ("Is it a comic?", "No"),
    ]
    assert skipped == {"ocr-vqa-train-8475": "questions and answers differ"}
    found, _ = ingest(tmp_path, "ocr-vqa", tmp_path / "ocr" / "dataset.json", split="test")
    assert found["ocr-vqa-test-1439819742-0"].image == released.picture(2, "GIF")


def test_tallyqa_from_two_image_folders(tmp_path):
    released.tallyqa(tmp_path / "tally")
    (tmp_path / "vg").mkdir()
    (tmp_path / "tally" / "VG_100K_2").rename(tmp_path / "vg" / "VG_100K_2")
    source = tmp_path / "tally"
    found, skipped = ingest(tmp_path, "tallyqa", source, images=[source, tmp_path / "vg"])
    assert not skipped
    bus, dogs = found.values()
    assert said(bus) == ("How many headlights does the black bus have?", "4")
    assert (bus.kinds, dogs.kinds) == (("counting", "complex"), ("counting",))
    assert said(dogs)[1] == "0" and bus.image == released.picture(4)


@pytest.mark.parametrize("form", ["docvqa", "docvqa_hub"])
def test_docvqa_in_both_forms(tmp_path, form):
    getattr(released, form)(tmp_path / "doc")
    found, skipped = ingest(tmp_path, "docvqa", tmp_path / "doc")
    (record,) = found.values()
    assert record.id == "docvqa-train-337"
    assert said(record) == ("what is the date mentioned in this letter?", "1/8/93")
    assert record.kinds == ("reading", "handwritten", "form")
    assert record.facts == {"question_id": "337", "answers": "1/8/93\nJan 8"}
    assert record.image == released.picture(0 if form == "docvqa" else 1, "PNG")
    missing = {"train-00000-of-00001.parquet:0": "missing image"} if form != "docvqa" else {}
    assert skipped == missing | {"docvqa-train-338": "empty question or answer"}


def test_rendered_text(tmp_path):
    released.rendered_text(tmp_path / "text")
    found, skipped = ingest(tmp_path, "rendered-text", tmp_path / "text")
    assert [said(record)[1] for record in found.values()] == ["The quick brown fox", "One line"]
    assert said(found["rendered-text-0"])[0] in templates.TEXT_REQUESTS
    assert found["rendered-text-1"].image == released.picture(1, "PNG")
    assert skipped == {"rendered-text-2": "incomplete sample", "rendered-text-3": "empty text"}


def test_docci(tmp_path):
    released.docci(tmp_path / "docci")
    found, skipped = ingest(tmp_path, "docci", tmp_path / "docci", split="qual_dev")
    (record,) = found.values()
    assert said(record)[1] == "An indoor angled down view of qual_dev_00000. It is bright."
    assert record.image == released.picture(1)
    assert skipped == {"docci_descriptions.jsonlines:2": "damaged line"}


def test_pixmo_cap(tmp_path):
    released.pixmo_cap(tmp_path / "pixmo")
    found, skipped = ingest(tmp_path, "pixmo-cap", tmp_path / "pixmo")
    names = [f"pixmo-cap-train-00000-of-00004-{n}" for n in range(4)]
    assert list(found) == names[:2]
    assert [said(r)[1] for r in found.values()] == ["A long caption.", "Another of it."]
    assert found[names[0]].facts == {"image_url": released.URLS[0]}
    assert skipped == {names[2]: "empty caption", names[3]: "missing image"}


def test_pixelprose_with_the_output_of_img2dataset(tmp_path):
    released.pixelprose(tmp_path / "prose", tmp_path / "downloaded")
    source, images = tmp_path / "prose", [tmp_path / "downloaded"]
    found, skipped = ingest(tmp_path, "pixelprose", source, images=images)
    assert list(found) == ["pixelprose-uid0", "pixelprose-uid1"]
    assert said(found["pixelprose-uid1"])[1] == "This image displays picture 1. It is sharp."
    assert found["pixelprose-uid1"].image == released.picture(1)
    assert skipped == {"pixelprose-uid2": "missing image"}
    assert list(ingest(tmp_path, "pixelprose", source, split="cc12m", images=images)[0]) == list(
        found
    )


def test_requests_vary_but_never_for_the_same_record():
    used = {templates.caption(f"coco-{n}", "x")[0].text for n in range(200)}
    assert used == set(templates.CAPTION_REQUESTS)
    assert templates.caption("coco-7", "a dog.") == templates.caption("coco-7", "a dog.")
    assert templates.caption("a", "is it?")[1].text == "Is it?"


def test_bad_images_are_left_out_and_listed(tmp_path):
    released.coco(tmp_path / "coco")
    broken = released.coco_picture(tmp_path / "coco", 3, "train2014")[:-40]
    released.save(tmp_path / "coco/train2014/COCO_train2014_000000000003.jpg", broken)
    found, skipped = ingest(tmp_path, "coco", tmp_path / "coco")
    assert list(found) == ["coco-train-20"]
    assert skipped["coco-train-30"] == skipped["coco-train-31"] == "unreadable image"


def test_the_limit_counts_records(tmp_path):
    released.coco(tmp_path / "coco")
    assert len(ingest(tmp_path, "coco", tmp_path / "coco", limit=2)[0]) == 2


def test_an_id_used_twice_is_left_out(tmp_path):
    released.tallyqa(tmp_path / "tally")
    path = tmp_path / "tally" / "train.json"
    entries = json.loads(path.read_text())
    released.save_json(path, [*entries, entries[0]])
    found, skipped = ingest(tmp_path, "tallyqa", tmp_path / "tally")
    assert len(found) == 2 and skipped == {"tallyqa-train-30095774": "refused record"}


def test_past_the_budget_it_stops_and_writes_no_records(tmp_path):
    released.pixmo_cap(tmp_path / "pixmo")
    with pytest.raises(ValueError, match=r"at most 1 .*1 empty caption, 1 missing image.*listed"):
        write.write_text("pixmo-cap", tmp_path / "pixmo", tmp_path / "out" / "p", budget=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["p.bad_records.jsonl"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("coco", {}, r"expected dataset_coco.json or .* in it, found nothing"),
        ("coco", {"split": "dev"}, "coco: expected a split of train, val, test, got 'dev'"),
        ("vqa", {}, "did you mean 'vqav2'"),
        ("vqav2", {"split": "test"}, "without public answers"),
        ("rendered-text", {}, r"expected files \*\*/\*.tar in it, found nothing"),
        ("coco", {"images": ["nowhere"]}, r"expected image folders, .*nowhere; name"),
        ("moshi-finetune", {}, "has speech; use mvjax data encode"),
    ],
)
def test_wrong_folders_and_splits_are_named(tmp_path, name, options, message):
    (tmp_path / "empty").mkdir()
    if "images" in options:
        options = {"images": [tmp_path / folder for folder in options["images"]]}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write.write_text(name, tmp_path / "empty", tmp_path / "out", **options)


def test_nothing_readable_is_an_error_that_says_why(tmp_path):
    released.vqav2(tmp_path / "vqa")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="got none; skipped: 2 missing image, 1 no answer"):
        write.write_text(
            "vqav2", tmp_path / "vqa", tmp_path / "o" / "v", images=[tmp_path / "other"]
        )
    assert not (tmp_path / "o" / "v.json").exists()


def test_files_of_another_form_are_named(tmp_path):
    for content, message in ((b"[5]", "Expected `object`, got `array`"), (b"[" * 10**6, "")):
        released.save(tmp_path / "dataset.json", content)
        with pytest.raises(ValueError, match=rf"dataset.json: not as .*{message}"):
            write.write_text("ocr-vqa", tmp_path, tmp_path / "out")
    released.save_table(
        tmp_path / "data" / "train-0.parquet", [{"url": "a"}], pa.schema([("url", pa.string())])
    )
    with pytest.raises(ValueError, match=r"expected columns image_url, caption, it has url"):
        write.write_text("pixmo-cap", tmp_path, tmp_path / "out")


def test_rows_of_other_types_are_left_out(tmp_path):
    released.pixmo_cap(tmp_path / "pixmo")
    schema = pa.schema([("image_url", pa.string()), ("caption", pa.int64())])
    path = tmp_path / "pixmo" / "data" / "train-00001-of-00004.parquet"
    released.save_table(path, [{"image_url": released.URLS[0], "caption": 5}], schema)
    found, skipped = ingest(tmp_path, "pixmo-cap", tmp_path / "pixmo")
    assert len(found) == 2 and skipped[f"{path.name}:0"] == "damaged row"


def test_damaged_shards_are_left_out_from_where_they_are_bad(tmp_path):
    released.pixmo_cap(tmp_path / "pixmo")
    whole = (tmp_path / "pixmo/data/train-00000-of-00004.parquet").read_bytes()
    released.save(tmp_path / "pixmo/data/train-00001-of-00004.parquet", whole[:-30])
    _, skipped = ingest(tmp_path, "pixmo-cap", tmp_path / "pixmo")
    assert skipped["train-00001-of-00004.parquet:0"] == "damaged file"


@pytest.mark.parametrize("length", [2048, 2300, 2600])  # after a sample, in a header, in a file
def test_cut_archives_are_left_out_from_where_they_end(tmp_path, length):
    released.rendered_text(tmp_path / "text")
    whole = (tmp_path / "text/000000.tar").read_bytes()
    released.save(tmp_path / "text/000000.tar", whole[:length])
    (tmp_path / "text/remaining/000009.tar").unlink()
    found, skipped = ingest(tmp_path, "rendered-text", tmp_path / "text")
    assert list(found) == ["rendered-text-0"]
    assert skipped == {"000000.tar": "damaged file"}


def test_names_outside_the_image_folders_are_missing_images(tmp_path):
    released.tallyqa(tmp_path / "tally")
    path = tmp_path / "tally" / "train.json"
    entries = json.loads(path.read_text())
    changed = [entries[0] | {"question_id": n} for n in range(4)]
    for entry, image in zip(changed, ("../x.jpg", "/etc/hosts", "x" * 5000, "")):
        entry["image"] = image
    released.save_json(path, [*changed, entries[1]])
    found, skipped = ingest(tmp_path, "tallyqa", tmp_path / "tally")
    assert len(found) == 1
    assert skipped == {f"tallyqa-train-{n}": "missing image" for n in range(4)}


def test_any_name_can_be_listed(tmp_path):
    with items.SkippedItems(tmp_path / "bad.jsonl") as skips:
        skips.add("a\udcff", "missing image", FileNotFoundError("b\udcff\n"))
    assert json.loads((tmp_path / "bad.jsonl").read_text()) == {
        "id": "a?",
        "reason": "missing image",
        "detail": "b?\n",
    }


def test_every_dataset_of_the_catalog_has_a_reader():
    for name in catalog.DATASETS:
        assert catalog.reader(name).__doc__


def test_reading_stays_a_few_items_ahead(tmp_path):
    released.save(tmp_path / "a.png", released.picture(1, "PNG"))
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield items.Item(str(taken), tmp_path / "a.png", templates.question("a", "b"), (), {})

    found = items.records_of(endless(), items.SkippedItems(), workers=2)
    assert [next(found).id for _ in range(3)] == ["1", "2", "3"]
    assert taken < 20
    found.close()


def test_command(tmp_path, capsys):
    released.coco(tmp_path / "coco")
    out = tmp_path / "records"
    words = ["data", "ingest", "coco", str(tmp_path / "coco"), "--out", str(out)]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "coco-train: 3 records, 2 images" in printed
    assert "skipped: 1 empty caption; listed in" in printed
    assert len(dataset.RecordReader(out / "coco-train", expected=None)) == 3
    assert cli.main([*words, "--max-skipped", "0", "--name", "mine"]) == 2
    assert "at most 0 items may be skipped" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["data", "ingest", "--list"])
    listed = capsys.readouterr().out
    assert "pixelprose: " in listed and "babillage" not in listed


@pytest.mark.parametrize(
    ("name", "path", "key"),
    [
        ("coco", "dataset_coco.json", "images"),
        ("vqav2", "v2_OpenEnded_mscoco_train2014_questions.json", "questions"),
        ("vqav2", "v2_mscoco_train2014_annotations.json", "annotations"),
        ("tallyqa", "train.json", None),
        ("docvqa", "train_v1.0_withQT.json", "data"),
        ("ocr-vqa", "dataset.json", None),
    ],
)
def test_one_damaged_entry_does_not_end_the_others(tmp_path, name, path, key):
    source = tmp_path / "source"
    getattr(released, name.replace("-", "_"))(source)
    whole, skipped = ingest(tmp_path, name, source)
    (file,) = source.rglob(path)
    content = json.loads(file.read_text())
    entries = content[key] if key else content
    if isinstance(entries, dict):
        entries["extra"] = {"imageURL": 5}
    else:
        entries.insert(0, {"question_id": None})
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())  # with a byte order mark
    found, now = ingest(tmp_path, name, source)
    assert found == whole and len(now) == len(skipped) + 1
    assert "damaged entry" in now.values()


def test_one_row_that_is_no_text_does_not_end_the_file(tmp_path):
    captions = pa.array([b"A dog", b"\xff\xfe", b"A cat"], pa.binary())
    captions = pa.StringArray.from_buffers(3, *captions.buffers()[1:])
    urls = pa.array(released.URLS[:3])
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image_url": urls, "caption": captions}), path)
    skips = items.SkippedItems()
    rows = sources.parquet_rows([path], pixmo_cap._PixmoRow, skips)
    assert [row.caption for _, row in rows] == ["A dog", "A cat"]
    assert skips.counts == {"damaged row": 1}
