"""A small model is asked each shape of public benchmark: written, spoken, of choices, after earlier turns."""

import dataclasses

import public_data
import pytest
import small_speaker

from mvjax.eval import discovery, runner
from mvjax.eval.benchmarks import _prefixes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return public_data.write(tmp_path_factory.mktemp("public"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode", "kinds"),
    [
        ("coco_after_talk", "text", ["after 0", "after 1"]),
        ("babillage_ocr_vqa", "audio", ["exact match", "letters and digits (ours)"]),
        ("mmlu", "blind", ["after 0", "after 1"]),
    ],
)
def test_a_model_is_asked_and_scored(root, monkeypatch, name, mode, kinds):
    monkeypatch.setattr(_prefixes, "TURNS", (0, 1))
    found = discovery.find(name, option="--benchmark")
    short = dataclasses.replace(found.protocol, lead_in=0.4, tail=0.8, max_tokens=3)
    monkeypatch.setattr(found, "protocol", short)
    benchmark = found(root)
    samples = benchmark.samples(2, 0)
    evaluation = runner.evaluate(small_speaker.loaded(), benchmark, samples, [mode], batch_size=2)
    answers = evaluation.answers[mode]
    assert [answer.id for answer in answers] == [sample.id for sample in samples]
    *rows, total = evaluation.table
    assert [row["kind"] for row in rows] == kinds and total["n"] == len(samples)
    scores = [row[mode] for row in evaluation.table]
    assert all(0 <= score <= 1 for score in scores)  # CIDEr of noise, too
    low, high = evaluation.intervals[mode]
    assert low <= total[mode] <= high
    if name == "mmlu":
        assert {a.said for a in answers} <= {c for s in samples for c in s.choices}
        assert rows[1]["turns"] == 1 and rows[1]["direction"] == "image to other"
    else:
        assert any(answer.said for answer in answers)
