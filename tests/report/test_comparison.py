"""`mvjax report`: what it reads, counts, tests and draws, from a sweep folder and from single runs."""

import csv
import json
import re

import numpy as np
import pytest
import sweeps
from PIL import Image
from scipy import stats as reference

from mvjax import cli
from mvjax.report import charts, figures, numbers, outcomes, page, paper, stats, tables

TRIALS = {
    "released": {"text": 0.6, "audio": 0.4, "blind": 0.2},
    "null_key": {"text": 0.9, "audio": 0.4, "blind": 0.2},
    "broken": "failed",
    "later": None,
}


@pytest.fixture(scope="module")
def gates(tmp_path_factory):
    return sweeps.write(tmp_path_factory.mktemp("gates"), sweeps.GATES, TRIALS)


@pytest.fixture(scope="module")
def written(gates):
    assert cli.main(["report", str(gates)]) == 0
    return gates / "report"


def test_a_report_is_a_page_markdown_with_its_charts_and_the_numbers(written):
    html, text = (written / page.HTML).read_text(), (written / page.MARKDOWN).read_text()
    links = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", text)
    assert len(links) >= 4
    for alt, name in links:
        with Image.open(written / name) as picture:
            assert len(alt) > 20 and picture.size[0] > 800
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', html)
    assert sources and all(s.startswith(("data:", "#")) for s in sources) and "<script" not in html
    assert "<gate>" not in html and "no such &lt;gate&gt;" in html and r"no such \<gate>" in text
    for content in (html, text, (written / page.JSON).read_text()):
        assert "/somewhere" not in content
    rows = list(csv.DictReader((written / page.CSV).read_text().splitlines()))
    assert len(rows) == 2 * 3 * 3 and rows[0].keys() >= {"trial", "seed", "score", "adapters"}


def test_numbers_are_those_of_the_runs(gates, written):
    content = json.loads((written / page.JSON).read_text())
    of = {(one["trial"], one["mode"]): one for one in content["scores"]}
    assert len(of) == 6
    for seed in range(3):
        table = json.loads((gates / f"null_key/seed-{seed}/eval/digits.json").read_text())["table"]
        assert of["null_key", "text"]["seeds"][str(seed)] == pytest.approx(table[-1]["text"])
    d = of["null_key", "text"]["difference"]
    seeds = [list(of[name, "text"]["seeds"].values()) for name in ("null_key", "released")]
    both = reference.ttest_rel(*seeds)
    other = of["null_key", "audio"]["difference"]["p_seeds"]
    assert d["mean"]["value"] == pytest.approx(np.mean(seeds[0]) - np.mean(seeds[1]), abs=1e-6)
    assert min(d["p_seeds"], other) == pytest.approx(min(2 * both.pvalue, other), abs=1e-5)
    low, high = both.confidence_interval(0.95)
    assert d["mean"]["half"] == pytest.approx((high - low) / 2, abs=1e-5)
    assert d["questions"] == 40 and 0 < d["p_questions"] < 0.05
    assert (
        of["null_key", "blind"]["difference"] is None
        and of["released", "text"]["difference"] is None
    )


def test_failed_and_missing_trials_are_shown_as_such(gates):
    read = outcomes.read([gates])
    table = tables.scores(read, numbers.scores(read), "digits")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["broken"][0] == "failed" and rows["later"][0] == "not started"
    assert "±" in rows["released *"][0] and rows["broken"][3] == "0 of 3"
    missing = tables.unfinished(read)
    assert [row[:3] for row in missing.rows] == [
        [name, str(seed), state]
        for name, state in (("broken", "failed"), ("later", "not started"))
        for seed in range(3)
    ]
    assert missing.rows[0][3] == "ValueError: no such <gate>"


def test_an_unfinished_sweep_and_a_study_without_results_are_reported(tmp_path, capsys):
    folder = sweeps.write(
        tmp_path, sweeps.GATES, {"released": None, "broken": "failed"}, seeds=(0,)
    )
    assert cli.main(["report", str(folder), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / page.MARKDOWN).read_text()
    assert "0 of 2 runs finished" in text and "no such" in text
    (folder / "sweep.json").write_text("{")
    assert cli.main(["report", str(folder)]) == 2
    assert "sweep.json: expected JSON" in capsys.readouterr().err


def test_single_runs_are_compared_with_intervals_over_questions(tmp_path, capsys):
    for name in ("a", "b"):
        sweeps.evaluation(tmp_path / name, "digits", {"text": 0.8}, rng=[len(name)])
        (tmp_path / name / "eval" / "agreement.json").write_text('{"text": 1}')  # no benchmark's
    read = outcomes.read([tmp_path / "a", tmp_path / "b"])
    assert [trial.name for trial in read.trials] == ["a", "b"] and read.benchmarks() == ["digits"]
    rows = tables.scores(read, numbers.scores(read), "digits").rows
    assert re.fullmatch(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", rows[0][1])
    assert cli.main(["report", str(tmp_path / "a"), str(tmp_path)]) == 2
    assert "expected sweep.json" in capsys.readouterr().err


def test_intervals_and_tests_are_those_of_scipy():
    a, b = [0.5, 0.6, 0.75, 0.7], [0.4, 0.55, 0.5, 0.68]
    low, high = reference.t.interval(0.95, 3, np.mean(a), reference.sem(a))
    got = stats.mean(a)
    assert got.value - got.half == pytest.approx(low) and got.value + got.half == pytest.approx(
        high
    )
    assert stats.mean([0.5]) == (0.5, None, 1) and stats.mean([0.1 * 3, 0.3]).half == 0
    found = stats.difference(dict(enumerate(a)), dict(enumerate(b)) | {9: 0.0}, answers={})
    assert found.p_seeds == pytest.approx(reference.ttest_rel(a, b).pvalue)
    assert found.p_questions is None and found.mean.n == 4
    assert stats.difference({0: 0.5}, {1: 0.5}, answers={}) is None
    assert stats.difference({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.5}, answers={}).p_seeds is None


def test_questions_are_tested_by_flipping_signs():
    rng = np.random.default_rng(0)
    base = {f"q{i}": float(rng.random() < 0.5) for i in range(60)}
    better = {name: 1.0 if i < 12 else score for i, (name, score) in enumerate(base.items())}
    gained = sum(better[name] != base[name] for name in base)
    found = stats.difference({0: 0.0}, {0: 0.0}, answers={0: (better, base)})
    assert found.p_questions == pytest.approx(2 * 0.5**gained, abs=0.01) and found.questions == 60
    same = stats.difference({0: 0.0}, {0: 0.0}, answers={0: (base, base)})
    assert same.p_questions == 1


def test_p_values_are_holms():
    assert stats.holm([0.01, None, 0.04, 0.03]) == [0.03, None, 0.06, 0.06]


def test_the_curve_stands_over_the_axis_of_the_study(tmp_path):
    trials = {f"speech_{x}": {"text": 0.5, "audio": x / 100} for x in (0, 1, 5, 25, 100)}
    read = outcomes.read([sweeps.write(tmp_path, sweeps.RATIO, dict(reversed(trials.items())))])
    assert [trial.name for trial in read.trials] == list(trials)
    figure = figures.curve(read, numbers.scores(read), "digits")
    audio = re.search(r"audio: (.*)$", figure.alt)[1]
    assert re.findall(r"at (\d+)", audio) == ["0", "1", "5", "25", "100"]
    assert "<svg" in figure.chart.plot.narrow


def test_context_switches_are_relative_as_in_the_paper(tmp_path):
    folder = sweeps.write(tmp_path, sweeps.SWITCH, {"gate": {"text": 0.5}}, seeds=(0,))
    sweeps.switch_evaluation(folder / "gate/seed-0", rng=[1])
    read = outcomes.read([folder])
    relative, absolute = figures.switches(read, "digits-switch", "text")
    rows = read.result("digits-switch")["table"]
    other = {row["turns"]: row["text"] for row in rows[:4]}
    image = {row["turns"]: row["text"] for row in rows[4:8]}
    wanted = ", ".join(f"{other[t] / 0.95:.3g} at {t}" for t in other)
    assert f"image to other, gate: {wanted}" in relative.alt
    wanted = ", ".join(f"{image[t] / image[0]:.3g} at {t}" for t in image)
    assert f"other to image, gate: {wanted}" in relative.alt
    assert f"{100 * image[10]:.3g} at 10" in absolute.alt
    means = tables.directions(read, "digits-switch")
    row = dict(zip(means.head, means.rows[0], strict=True))
    assert row["image to other, blind"] == "95.0"
    assert row["other to image, text"] == f"{100 * np.mean(list(image.values())):.1f}"


def test_the_papers_numbers_are_known_by_name():
    with pytest.raises(ValueError, match="unknown 'speech_ration'; did you mean 'speech_ratio'"):
        paper.find("speech_ration")
    for name, known in paper.NUMBERS.items():
        assert all(len(row) == len(known.head) for row in known.rows), name
        assert known.status in tables.of_paper(known).caption
    lines = {(line.panel, line.series): line for line in paper.find("speech_ratio").lines}
    assert lines["OCR", "text"].y[-1] == 10.9 and len(lines["CIDEr", "audio"].x) == 8
    assert paper.is_same("babillage_coco") and not paper.is_same("digits-hard")


def test_lines_of_a_chart_differ_by_more_than_color():
    one = charts.Estimate(1.0)
    series = [charts.Series(f"s{k}", [0.0, 1.0], [one, one]) for k in range(6)]
    svg = charts.curves({"": series}, x_label="x", y_label="y").plot.wide
    dashes = set(re.findall(r"stroke-dasharray: ([^;\"]+)", svg))
    assert len(dashes) >= 5 and len(set(charts._MARKERS)) == len(charts._LINES) == 6
