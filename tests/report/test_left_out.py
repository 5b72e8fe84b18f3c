"""`mvjax report`: what is damaged, or was asked in another way, is named and left out; axes hold all."""

import json

import numpy as np
import pytest
import sweeps

from mvjax import cli
from mvjax.config import study as study_lib
from mvjax.report import (
    charts,
    comparable,
    comparison,
    numbers,
    outcomes,
    page,
    plots,
    stats,
    tables,
)

GATED = {"released": {"text": 0.6, "audio": 0.4}, "null_key": {"text": 0.9, "audio": 0.4}}


def _changed(path, **fields):
    result = json.loads(path.read_text())
    for name, value in fields.items():
        result[name] = result[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(result))
    return result


def _kept(*folders):
    return comparable.keep(outcomes.read(folders))


def _why(read):
    return {(one.trial, one.seed, one.file): one.why for one in read.left_out}


@pytest.fixture
def undrawn(monkeypatch):
    """Charts are files of no bytes."""
    monkeypatch.setattr(plots, "_saved", lambda *_: b"")


@pytest.mark.usefixtures("undrawn")
def test_evaluations_of_another_protocol_seed_limit_or_step_are_left_out_by_name(tmp_path, capsys):
    folder = sweeps.write(tmp_path / "s", sweeps.GATES, GATED, seeds=range(4))
    data = json.loads((folder / "sweep.json").read_text())
    data["trials"] = {name: {"train": {"steps": 200}} for name in GATED}
    (folder / "sweep.json").write_text(json.dumps(data))
    path = folder / "null_key/seed-{}/eval/digits.json"
    _changed(folder / "null_key/seed-0/eval/digits.json", protocol={"lead_in": 1.0, "seed": 7})
    result = _changed(folder / "null_key/seed-1/eval/digits.json", limit=6)
    result["table"][-1]["n"] = 6
    _changed(folder / "released/seed-3/eval/digits.json", step=100)
    table = json.loads((folder / "null_key/seed-2/eval/digits.json").read_text())["table"]
    table[-1]["audio"] = None
    _changed(folder / "null_key/seed-2/eval/digits.json", table=table)

    assert cli.main(["report", str(folder), "--out", str(tmp_path / "out")]) == 0
    text, said = (tmp_path / "out" / page.MARKDOWN).read_text(), capsys.readouterr().err
    written = json.loads((tmp_path / "out" / page.JSON).read_text())
    file = path.name
    whys = {
        ("null_key", 0): "differs from the others: lead in 1.0, not 0.3; seed 7, not 1",
        ("null_key", 1): "limit 6, the study asks 40",
        ("released", 3): "of step 100, the study trains 200 steps",
    }
    for (trial, seed), why in whys.items():
        assert f"left out: {trial}, seed {seed}: eval/{file}: {why}" in said
        assert f"| {trial} | {seed} | eval/{file} | {why} |" in text
        assert why in (tmp_path / "out" / page.HTML).read_text()
    assert len(written["left_out"]) == len(whys) == said.count("left out")
    scored = {(one["trial"], one["mode"]): one for one in written["scores"]}
    assert scored["null_key", "text"]["seeds"].keys() == {"2", "3"}
    assert scored["null_key", "audio"]["seeds"].keys() == {"3"}
    assert scored["released", "text"]["seeds"].keys() == {"0", "1", "2"}
    assert "| text 2, audio 1 of 4 |" in text and "| 3 of 4 |" in text
    assert scored["null_key", "text"]["difference"]["asked_seeds"] == 1


def test_without_a_study_the_most_frequent_protocol_counts_and_a_quick_look_never(tmp_path):
    for name, n in (("a", 6), ("b", 40), ("c", 40)):
        sweeps.evaluation(tmp_path / name, "digits", {"text": 0.8}, questions=n)
    read = _kept(*(tmp_path / name for name in "abc"))
    assert _why(read) == {
        ("a", 0, "eval/digits.json"): "differs from the others: questions 6, not 40"
    }
    assert tables.scores(read, numbers.scores(read), "digits").rows[0][1:3] == [
        "left out",
        "0 of 1",
    ]
    two = _kept(tmp_path / "a", tmp_path / "b")  # as many of each: the larger
    assert [one.trial for one in two.left_out] == ["a"]
    # what says less does not differ, nor do settings of speech where nothing was spoken
    _changed(tmp_path / "b/eval/digits.json", protocol={"lead_in": 9.0})
    result = json.loads((tmp_path / "c/eval/digits.json").read_text())
    del result["protocol"]
    (tmp_path / "c/eval/digits.json").write_text(json.dumps(result))
    assert not _kept(tmp_path / "b", tmp_path / "c").left_out


ROW = {"kind": "all", "n": 1, "text": 1.0}


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("eval/digits.json", "[1]", "table"),
        ("eval/digits.json", '{"a": null}', "table"),
        ("eval/digits.json", "{", "expected JSON"),
        ("eval/digits.json", '{"table": [{"kind": "digit"}]}', "'all'"),
        ("eval/digits.json", '{"table": [[]]}', "table"),
        ("eval/digits.json", json.dumps({"table": [ROW | {"text": "1"}]}), "text: expected a number"),
        ("eval/digits.json", json.dumps({"table": [ROW | {"text": np.nan}]}), "got nan"),
        ("eval/digits.json", json.dumps({"table": [ROW], "protocol": [1]}), "protocol"),
        ("eval/digits.json", json.dumps({"table": [ROW], "gates": {"image": "x"}}), "image"),
        ("eval/digits.json", json.dumps({"table": [ROW], "intervals": {"text": [1]}}), "2 numbers"),
        ("eval/digits.json", json.dumps({"table": [ROW], "limit": "all"}), "limit"),
        ("eval/digits.samples.jsonl", "", "no answers"),
        ("eval/digits.samples.jsonl", "junk\n[1]\n", "2 lines damaged"),
        ("eval/digits.samples.jsonl", '{"id": "q0", "mode": "text", "score": 1}\n', "1 answers"),
        ("trial.json", "[1]", "expected an object"),
        ("trial.json", "{", "expected JSON"),
        ("trial.json", '{"state": "finished", "seconds": "long"}', "seconds"),
        ("trial.json", '{"state": {}, "parameters": [1]}', "parameters, state"),
    ],
)  # fmt: skip
def test_a_damaged_file_of_a_run_is_named_and_the_others_count(tmp_path, file, content, why):
    folder = sweeps.write(tmp_path, sweeps.GATES, {"released": {"text": 0.6}}, seeds=(0, 1))
    (folder / "released/seed-1" / file).write_text(content)
    read = _kept(folder)
    found = numbers.scores(read)
    if file == "trial.json":
        missing = tables.unfinished(read)
        assert missing is not None
        row = missing.rows[0]
        assert row[:3] == ["released", "1", "unreadable"] and why in row[3]
    assert list(_why(read)) == [("released", 1, file)] and why in read.left_out[0].why
    counted = {0, 1} if "samples" in file else {0}
    assert found[0].seeds.keys() == counted
    assert ("digits", "text") not in read.trials[0].runs[1].answers
    assert outcomes.read([folder]).seeds == [0, 1]


@pytest.mark.parametrize(
    "content", ['{"a": null}', "[1]", '{"study": 1, "seeds": [0], "trials": {}}']
)
def test_what_is_no_sweep_is_refused_with_its_path(tmp_path, capsys, content):
    (tmp_path / "sweep.json").write_text(content)
    assert cli.main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path / 'sweep.json'}: " in capsys.readouterr().err


def test_a_sweep_is_named_alone_and_a_run_without_results_not_at_all(tmp_path):
    sweep = sweeps.write(tmp_path / "s", sweeps.GATES, {"released": {"text": 0.6}}, seeds=(0,))
    run = sweep / "released/seed-0"
    for folders in ([sweep, run], [run, sweep]):
        with pytest.raises(ValueError, match="sweep alone, got 2 folders"):
            outcomes.read(folders)
    (tmp_path / "new/eval").mkdir(parents=True)
    with pytest.raises(ValueError, match="found none; evaluate it first"):
        outcomes.read([run, tmp_path / "new"])
    (tmp_path / "new/eval/digits.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"found eval/digits\.json: expected an object"):
        outcomes.read([tmp_path / "new"])
    (run / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json: expected a config"):
        outcomes.read([run])


@pytest.mark.usefixtures("undrawn")
def test_the_page_of_one_run_says_its_scores_and_only_what_there_is(tmp_path):
    sweeps.evaluation(tmp_path, "digits", {"text": 0.8}, gates={"image": [0.5, 0.4]})
    _changed(tmp_path / "eval/digits.json", metric="CIDEr")
    read = _kept(tmp_path)
    composed = comparison.compose(read, numbers.scores(read))
    blocks = [block for section in composed.sections for block in section.blocks]
    texts = [block for block in blocks if isinstance(block, str)]
    captions = [block.caption for block in blocks if isinstance(block, page.Figure)]
    heads = [block.head for block in blocks if isinstance(block, page.Table)]
    assert composed.subtitle == "1 trial, 1 seed, 1 of 1 run finished"
    assert any(text.startswith("digits. Text prompts: ") and "[" in text for text in texts)
    assert captions[0] == "Intervals are 95% over questions; what runs off an axis is cut."
    assert "(0)" not in captions[1] and ["trial", "image"] in heads
    assert not any("lead in" in text for text in texts) and "percent" not in page.markdown(composed)
    assert "digits: CIDEr x 100;" in page.markdown(composed)
    assert ["trial", "text", "seeds"] in heads  # nobody knows the costs


def test_equal_numbers_have_no_interval():
    equal = stats.mean([0.5, 0.5])
    one = numbers.Score("a", "coco", "text", stats.mean([0.0]), {0: 0.0}, {}, (0.0, 0.0))
    assert tables.score_cell(one) == "0.0 (answers equal)"
    assert tables.mean_cell(equal) == "50.0 (seeds equal)"
    assert tables.seeds({"text": 2, "audio": 2}, 3) == "2 of 3"


def test_markdown_shows_names_as_they_are():
    rows = [["kv_gate *", "-1.5", "28.5 [1.0, 2.0]"], ["_a_ **b** `c`", "a|b", "[x](y)"]]
    table = page.Table("1. & <i>", ["trial", "p < 0.001", "two\nlines"], rows)
    text = page.markdown(page.Page("Lazy & Co <b> &lt;", "# 2", [page.Section("", [table])], "x"))
    assert text.splitlines()[:3] == [r"# Lazy & Co \<b> \&lt;", "", r"\# 2"]
    assert r"1\. & \<i>" in text and "| trial | p < 0.001 | two lines |" in text
    assert "| kv_gate * | -1.5 | 28.5 [1.0, 2.0] |" in text
    assert r"| \_a\_ \*\*b\*\* \`c\` | a\|b | [x\](y) |" in text


def _all_charts():
    def at(value, half=0.0):
        return charts.Estimate(value, (value - half, value + half), (value - 5.0, value + 5.0))

    gates = {f"t{k}": {"image": [0.1 + k, 0.5 * k], "silence": [0.2, 0.3]} for k in range(5)}
    gates["t0"] = {"image": [0.01, 0.02]}
    rows = [
        charts.Dots("a", {"text": at(90.0, 40.0)}),
        charts.Dots("b", {"text": at(20.0), "audio": at(95.0)}),
    ]
    one = [charts.Dots("a", {"text": charts.Estimate(100.0, (43.8, 100.0))})]
    spots = [charts.Spot("A", 1e6, at(5.0, 300.0)), charts.Spot("B", 2e7, at(90.0, 20.0))]
    lines = [
        charts.Series(f"s{k}", [0.0, 1.0, 10.0], [at(5.0), at(50.0, 200.0), at(95.0)])
        for k in range(6)
    ]
    long = charts.Series("s", [0.0, 1.0, 5.0, 25.0, 100.0], [at(90.0, 3.0)] * 5)
    return {
        "layers": lambda: charts.layers(gates),
        "ranking": lambda: charts.ranking(rows, label="", baseline="b", guessing=10.0, most=100.0),
        "single": lambda: charts.ranking(one, label="", baseline=None, most=100.0),
        "against": lambda: charts.against({"x": spots}, y_label="", most=100.0),
        "curves": lambda: charts.curves({"": lines}, x_label="", y_label="", most=100.0),
        "roots": lambda: charts.curves({"": [long]}, x_label="", y_label="", most=100.0),
        "relative": lambda: charts.curves({"a": lines[:1], "b": lines}, x_label="", y_label=""),
    }


@pytest.mark.parametrize("name", _all_charts())
def test_axes_hold_every_mean_and_seed_and_legends_every_name(monkeypatch, name):
    figures = []

    def keep(draw, size, form):
        from matplotlib import figure

        figures.append(figure.Figure(figsize=size, layout="constrained"))
        draw(figures[-1], size[0])
        return b""

    monkeypatch.setattr(plots, "_saved", keep)
    _all_charts()[name]()
    assert len(figures) == 3  # wide, narrow, PNG
    for figure in figures:
        for axes in figure.axes:
            points = [
                (x, y)
                for line in axes.lines
                if line.get_transform() == axes.transData
                and line.get_marker() not in ("None", "|", "_")
                for x, y in line.get_xydata()
            ]
            (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
            assert all(left < x < right and low < y < high for x, y in points)
            assert points or not axes.axison
            assert (
                name in ("layers", "relative")
                or (right if name in ("ranking", "single") else high) <= 103
            )
        shown = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
        wanted = {"layers": {"image", "silence"}, "ranking": {"text", "audio", "guessing"}}
        assert wanted.get(name, set()) <= shown


def test_names_of_studies_keep_their_files_apart(tmp_path):
    asked = study_lib.Asked("some/where/my bench.py")
    assert outcomes.stem(asked) == "my bench"
