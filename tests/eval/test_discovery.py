"""A benchmark is one file: found by its path, and refused with a reason."""

import textwrap
from pathlib import Path

import pytest

from mvjax import cli
from mvjax.eval import benchmarks, discovery

FILE = '''
"""Capitals, without an image."""
from mvjax.eval import benchmarks

class Capitals(benchmarks.Benchmark):
    name = "capitals"
    modes = ("text",)

    def samples(self, limit, seed):
        return [benchmarks.Sample("fr", "europe", "what is the capital of france", truth="paris")][:limit]

    def score(self, sample, said):
        return float(sample.truth in said)
'''


def test_one_file_is_a_benchmark(tmp_path):
    path = tmp_path / "capitals.py"
    path.write_text(FILE)
    found = discovery.find(str(path), option="--benchmark")()
    (sample,) = found.samples(None, 0)
    assert (found.name, found.metric, found.chance("europe")) == ("capitals", "accuracy", None)
    assert found.score(sample, "it is paris") == 1 and found.score(sample, "rome") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected a file that defines a benchmark, got none"),
        ("x = 1", "expected one class that derives from Benchmark, got none"),
        (FILE + "\nclass More(Capitals): pass", "got Capitals, More"),
        (FILE.replace('"capitals"', '"towns"'), "Capitals.name: expected 'capitals'"),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "capitals.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError) as error:
        discovery.find(str(path), option="--benchmark")
    assert message in str(error.value) and str(path) in str(error.value)


def test_every_benchmark_of_the_package_is_found_by_its_name():
    for name in discovery.names():
        found = discovery.find(name, option="--benchmark")
        assert found.name == name and set(found.modes) <= set(benchmarks.MODES)
    with pytest.raises(ValueError, match="--benchmark: unknown 'digit'; did you mean 'digits'?"):
        discovery.find("digit", option="--benchmark", others=["digits"])


def test_a_smaller_limit_asks_a_part_of_a_larger_ones_samples():
    few, more = benchmarks.drawn(100, 10, seed=1), benchmarks.drawn(100, 40, seed=1)
    assert len(few) == 10 and set(few) < set(more) and more == sorted(more)
    assert few != benchmarks.drawn(100, 10, seed=2)
    assert benchmarks.drawn(5, None, seed=1) == benchmarks.drawn(5, 9, seed=1) == [0, 1, 2, 3, 4]


def test_the_example_of_the_docs_is_one(tmp_path, capsys):
    text = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    example = text.partition("    import csv\n")[2].partition("`Sample.image`")[0]
    path = tmp_path / "capitals.py"
    path.write_text("import csv\n" + textwrap.dedent(example))
    (tmp_path / "capitals.csv").write_text(
        "id,continent,question,answer\nfr,europe,what is the capital of france,paris\n"
    )
    made = discovery.find(str(path), option="--benchmark")
    (sample,) = made(tmp_path).samples(None, 1)
    assert made().score(sample, "it is paris") == 1 and sample.kind == "europe"
    for words, told in (
        (
            [],
            "--data ROOT (while a run trains: EvalConfig(..., data=ROOT) in config.evals): expected the",
        ),
        (["--data", str(tmp_path / "no")], "no/capitals.csv: expected data of benchmark capitals"),
    ):
        assert cli.main(["eval", "runs/a", "--benchmark", str(path), *words]) == 2
        assert told in capsys.readouterr().err
    path.write_text(
        path.read_text().replace('self.data("capitals.csv")', "(self.root / 'capitals.csv')")
    )
    assert cli.main(["eval", "runs/a", "--benchmark", str(path)]) == 2
    assert "benchmark capitals: samples() failed: TypeError" in capsys.readouterr().err
