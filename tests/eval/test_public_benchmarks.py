"""The public benchmarks, read from small copies in their published formats."""

import json

import numpy as np
import public_data
import pytest
import released
from pyarrow import parquet

from mvjax.eval import asking, discovery, metrics
from mvjax.eval.scoring import cider, ptb

PUBLIC = discovery.names()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return public_data.write(tmp_path_factory.mktemp("public"))


def made(name, root):
    return discovery.find(name, option="--benchmark")(root)


def answered(benchmark, samples, texts):
    return [
        metrics.ScoredAnswer(s.id, s.kind, s.prompt, text, benchmark.score(s, text))
        for s, text in zip(samples, texts)
    ]


@pytest.mark.parametrize(
    ("name", "count", "prompt", "truth"),
    [
        ("coco", 3, "What do you see?", 1),
        ("coco_val", 1, "What do you see?", 4),
        ("vqav2", 6, "What is at 1000?", ["red"] * 7 + ["Red."] + ["blue\n"] * 2),
        ("ocr_vqa", 3, "Who wrote this book?", "J.R.R. Tolkien"),
        ("ocr_vqa_val", 1, "Who wrote this book?", "Bo"),
        ("tallyqa", 2, "How many?", "0"),
        ("docvqa", 2, "What is item 0?", ["1/8/93", "Jan 8"]),
        ("babillage_coco", 3, "What's here 11?", 1),
        ("babillage_vqav2", 3, "What's at 1000?", ["red"] * 7 + ["Red."] + ["blue\n"] * 2),
        ("babillage_ocr_vqa", 3, "So who is it that wrote this book?", "J.R.R. Tolkien"),
        ("coco_after_talk", 18, "What do you see?", 1),
        ("mmlu", 12, 'Which, of these, is a "dog"?', "A poodle"),
    ],
)
def test_samples(root, name, count, prompt, truth):
    benchmark = made(name, root)
    samples = benchmark.samples(None, 0)
    first = samples[0]
    assert (len(samples), first.prompt, first.truth) == (count, prompt, truth)
    assert len({sample.id for sample in samples}) == count
    assert all(sample.image().ndim == 3 and sample.shows is not None for sample in samples)
    assert (first.speech is not None) == ("audio" in benchmark.modes)
    fewer = benchmark.samples(2, 5)
    assert len(fewer) == min(2, count) and {s.id for s in fewer} <= {s.id for s in samples}


def test_the_speech_is_that_of_the_row(root):
    for name in ("babillage_coco", "babillage_vqav2", "babillage_ocr_vqa"):
        samples = made(name, root).samples(None, 0)
        tenths = {"babillage_coco": [11, 20, 31], "babillage_vqav2": [6, 2, 5]}.get(name, [0, 1, 2])
        lengths = [round(len(sample.speech()) / 2400) - 1 for sample in samples]
        assert lengths == tenths


def test_reworded_questions_find_their_answers(root):
    samples = made("babillage_ocr_vqa", root).samples(None, 0)
    assert [sample.truth for sample in samples] == ["J.R.R. Tolkien", "Calendars", "Ann"]


def test_captions_are_scored_against_the_whole_split(root):
    benchmark = made("coco", root)
    samples = benchmark.samples(None, 0)
    said = ["a 1 men ride", "2 dogs", "3 dogs"]
    captions = [
        [f"A {n} men ride.", f"{n} dogs.", f"a cat and {n} dogs", "two people"] for n in (1, 2, 3)
    ]
    expected = cider.scores(ptb.words(said), [ptb.words(texts) for texts in captions])
    whole = benchmark.summary(answered(benchmark, samples, said))
    assert whole.overall == pytest.approx(np.mean(expected)) and whole.overall > 1
    few = benchmark.samples(1, 0)  # one image, weighted as in the whole split
    at = few[0].truth - 1
    alone = benchmark.summary(answered(benchmark, few, said[at : at + 1]))
    assert alone.overall == pytest.approx(expected[at]) and expected[at] > 0


def test_questions_are_scored(root):
    def score(name, index, said):
        benchmark = made(name, root)
        return benchmark.score(benchmark.samples(None, 0)[index], said)

    assert score("vqav2", 0, "The red!") == 1 and score("vqav2", 0, "blue") == pytest.approx(0.6)
    assert score("vqav2", 1, "Two") == 0  # people agree: nothing is normalized
    assert score("tallyqa", 1, " Four\n") == 1 and score("tallyqa", 1, "four cats") == 0
    assert score("docvqa", 0, "jan 8") == 1 and score("docvqa", 0, "1/8/94") == pytest.approx(5 / 6)
    assert score("mmlu", 0, "A poodle") == 1 and score("mmlu", 0, "Ice") == 0


def test_book_covers_have_a_row_of_ours(root):
    benchmark = made("ocr_vqa", root)
    said = ["j r r tolkien", "CALENDARS", "Anna"]
    summary = benchmark.summary(answered(benchmark, benchmark.samples(None, 0), said))
    assert summary.overall == pytest.approx(1 / 3)
    kind = "letters and digits (ours)"
    assert summary.kinds == pytest.approx({"exact match": 1 / 3, kind: 2 / 3})
    rows = metrics.table(
        {"text": answered(benchmark, benchmark.samples(None, 0), said)}, {"text": summary}
    )
    assert [(row["kind"], row["n"]) for row in rows] == [("exact match", 3), (kind, 3), ("all", 3)]


def test_both_directions_of_context_switching(root):
    for name, direction, topic in (
        ("mmlu", "image to other", "image"),
        ("coco_after_talk", "other to image", "off-topic"),
    ):
        benchmark = made(name, root)
        samples = benchmark.samples(None, 0)[:6]
        kinds = [f"after {n}" for n in (0, 1, 2, 3, 5, 10)]
        assert [s.kind for s in samples] == kinds
        assert [benchmark.columns(kind)["turns"] for kind in kinds] == [0, 1, 2, 3, 5, 10]
        assert {benchmark.columns(kind)["direction"] for kind in kinds} == {direction}
        assert [len(s.before) for s in samples] == [0, 1, 2, 3, 5, 10]
        assert samples[3].before == samples[5].before[:3]
        assert {turn.topic for turn in samples[5].before} == {topic}
        assert {s.topic for s in samples} == {"image", "off-topic"} - {topic}
    (first, *_), last = samples[5].before, made("mmlu", root).samples(None, 0)[5].before
    assert first.answer and last[0].question == "What is at 1000?" and last[0].answer == "red"
    assert last[5].question == "What do you see?" and last[5].answer == "A 1 men ride."


def test_intervals_of_context_switching_are_over_questions(root):
    benchmark = made("mmlu", root)
    samples = benchmark.samples(None, 0)
    said = [s.truth if s.id.startswith("mmlu-animals") else "" for s in samples]
    summary = benchmark.summary(answered(benchmark, samples, said))
    assert summary.overall == 0.5 and summary.kinds["after 3"] == 0.5
    assert summary.interval == metrics.interval(0.5, [2])
    benchmark = made("coco_after_talk", root)
    samples = benchmark.samples(None, 0)
    summary = benchmark.summary(answered(benchmark, samples, [""] * len(samples)))
    assert (summary.overall, summary.interval) == (0, (0, 0))  # CIDEr has no Wilson's interval
    rows = metrics.table({"text": answered(benchmark, samples, [""] * 18)}, {"text": summary})
    for row in rows[:-1]:
        row |= benchmark.columns(row["kind"])
    assert metrics.text_table(rows).splitlines()[-1].split() == ["all", "18", "0.0", "-", "-"]


def test_documents_and_questions_as_tables(root, tmp_path):
    public_data.docvqa_hub(tmp_path)
    tables, files = (made("docvqa", at).samples(None, 0) for at in (tmp_path, root))
    assert [s.truth for s in tables] == [s.truth for s in files]
    np.testing.assert_array_equal(tables[1].image(), files[1].image())
    for dataset in (public_data.coco, public_data.vqav2, public_data.mmlu_hub):
        dataset(tmp_path)
    assert made("mmlu", tmp_path).samples(None, 0)[0].choices == ("Rome", "Paris", "Berlin", "Oslo")


@pytest.mark.parametrize(
    ("name", "gone", "message"),
    [
        ("coco", "coco", r"coco: expected a folder, there is none; put dataset_coco.json of"),
        (
            "coco",
            "coco/dataset_coco.json",
            "expected dataset_coco.json or .*; put dataset_coco.json",
        ),
        ("coco", "coco/val2014", "3 images missing: .*000001.jpg.*; unpack val2014.zip"),
        (
            "vqav2",
            "vqav2/v2_mscoco_val2014_annotations.json",
            "v2_mscoco_val2014_annot.*visualqa.org",
        ),
        ("ocr_vqa", "ocr-vqa/images", "2 images missing: .*0761183272.gif.*ocr-vqa.github.io"),
        (
            "tallyqa",
            "visual-genome",
            "1 image missing: .*visual-genome/VG_100K_2/2410408.jpg.*VG_100K_2 of visualgenome.org",
        ),
        ("docvqa", "docvqa/val_v1.0_withQT.json", "val_v1.0_withQT.json or .*rrc.cvc.uab.es"),
        ("babillage_coco", "babillage/coco", r"coco/test-\*.parquet .*; download kyutai/Babillage"),
        ("babillage_vqav2", "vqav2", "vqav2: expected a folder, there is none; put the validation"),
        ("babillage_ocr_vqa", "ocr-vqa/dataset.json", "dataset.json in it, .*ocr-vqa.github.io"),
        ("mmlu", "mmlu/data", r"data/test/\*_test.csv or .*data.tar of MMLU"),
    ],
)
def test_what_is_missing_is_named_with_where_to_get_it(tmp_path, name, gone, message):
    public_data.write(tmp_path)
    (tmp_path / gone).rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=message):
        made(name, tmp_path).samples(None, 0)


def test_without_a_root_each_says_what_it_wants():
    for name in PUBLIC:
        with pytest.raises(
            ValueError, match=r"--data ROOT .*: expected the folder that holds .*, got none; "
        ):
            made(name, None).samples(None, 0)


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def emptied(path):
    parquet.write_table(parquet.read_table(path).slice(0, 0), path)


def of_four(path):
    path.rename(path.with_name(path.name.replace("-of-00001", "-of-00004")))


def changed(change):
    """Changes a JSON file."""

    def to(path):
        content = json.loads(path.read_text())
        change(content)
        released.save_json(path, content)

    return to


ANSWERS, ASKED = (
    f"vqav2/v2_{name}.json"
    for name in ("mscoco_val2014_annotations", "OpenEnded_mscoco_val2014_questions")
)


@pytest.mark.parametrize(
    ("name", "file", "damage", "message"),
    [
        ("tallyqa", "tallyqa/test.json", changed(lambda x: x.append({"answer": "x"})),
         r"tallyqa: expected whole files, got 1 damaged entry \(test.json:2: .*answer.*\); unpack"),
        ("babillage_coco", "babillage/coco/test-00000-of-00001.parquet", cut, "damaged file .*; download"),
        ("babillage_coco", "babillage/coco/test-00000-of-00001.parquet", of_four,
         "expected 4 files such as test-00000-of-00004.parquet, missing are the numbers 1, 2, 3; download"),
        ("babillage_vqav2", "babillage/vqav2/validation-00000-of-00001.parquet", emptied,
         "expected rows, got none in validation-00000-of-00001.parquet"),
        ("mmlu", "mmlu/data/test/animals_test.csv", lambda path: path.write_bytes(b""),
         "animals_test.csv: expected questions, got an empty file"),
        ("mmlu", "mmlu/data/test/animals_test.csv", lambda path: path.write_bytes(b"\xff,a,b,c,d,A\n"),
         "animals_test.csv: expected CSV in UTF-8: "),
        ("vqav2", ASKED, changed(lambda x: x["questions"].pop()), r"1 missing question \(vqav2-val-2000: "),
        ("vqav2", ANSWERS, changed(lambda x: x["annotations"].pop()), r"1 missing answers \(vqav2-val-2000"),
        ("babillage_vqav2", ANSWERS, changed(lambda x: x["annotations"][0].update(answers=[])),
         r"1 missing answers \(vqav2-val-1000"),
        ("coco", "coco/dataset_coco.json", changed(lambda x: x["images"][1].update(sentences=[])),
         r"1 missing captions \(image 2: COCO_"),
        ("ocr_vqa", "ocr-vqa/dataset.json", changed(lambda x: x["0761183272"]["answers"].pop()),
         r"questions and answers differ \(.*2 questions, 1 answers"),
        ("docvqa", "docvqa/spdocvqa_images/page_0.png", lambda path: path.unlink(),
         "1 image missing: .*docvqa/spdocvqa_images/page_0.png; put val_"),
    ],
)  # fmt: skip
def test_damage_is_no_smaller_set(tmp_path, name, file, damage, message):
    public_data.write(tmp_path)
    damage(tmp_path / file)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        made(name, tmp_path).samples(None, 0)
    assert str(error.value).count("into ROOT") <= 1


def test_a_damaged_image_or_sound_is_named_with_its_sample(root, tmp_path):
    public_data.write(tmp_path)
    path = tmp_path / "coco/val2014/COCO_val2014_000000000001.jpg"
    path.write_bytes(b"no image")
    (sample, *_) = made("coco", tmp_path).samples(None, 0)
    load = asking.image(sample)
    with pytest.raises(ValueError, match=f"sample coco-1: its image: {path}: "):
        assert load is not None and load()
