"""The recipe of docs/data.md leads from published files to the datasets of experiments/moshika_vis.py."""

import subprocess
from pathlib import Path

import pytest
import standin_llm

from mvjax import cli
from mvjax.config import text
from mvjax.data.records import dataset

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments" / "moshika_vis.py"


@pytest.fixture(scope="module")
def commands():
    """The words of every command that the recipe runs, as a shell expands them."""
    section = (ROOT / "docs" / "data.md").read_text().split("## From published data to")[1]
    script = "\n".join(
        line for line in section.split("\n## ")[0].splitlines() if line[:4] == "    "
    )
    shell = 'mvjax() { printf "%s\\t" "$@"; echo; }\n' + script
    said = subprocess.run(["bash", "-eu", "-c", shell], capture_output=True, text=True, check=True)
    return [line.rstrip("\t").split("\t") for line in said.stdout.splitlines()]


def made(commands, steps):
    """Names of datasets below the experiment's root that these steps make."""
    root = Path(text.load_experiment(EXPERIMENT).data.root)
    parsed = [cli._parser().parse_args(words) for words in commands if tuple(words[:2]) in steps]
    names = [getattr(args, "called", None) or args.name for args in parsed if args.out == root]
    assert len(set(names)) == len(names)
    return set(names)


def test_its_datasets_are_those_of_the_experiment(commands):
    data = text.load_experiment(EXPERIMENT).data
    spoken = {source.name for source in (*data.speech, *data.small_talk)}
    assert made(commands, {("data", "encode")}) == spoken
    written = made(commands, {("data", "ingest"), ("dialogues", "records")})
    assert written == {source.name for source in data.speechless}


def test_every_command_reads_what_an_earlier_one_made(commands):
    there = {Path("experiments/moshika_vis.py")}
    for words in commands:
        args = cli._parser().parse_args(words)
        read = [getattr(args, name, None) for name in ("source", "file", "folder", "experiment")]
        for path in filter(None, read):
            assert path in there or path.name.isupper(), words
        if words[1] == "ingest" or words[:2] == ["data", "encode"]:
            there |= {args.out, args.out / (getattr(args, "called", None) or args.name)}
        elif words[0] == "dialogues":
            there.add(args.out)


class AnyPicture(standin_llm.Server):
    """Talks about whatever: the captions of the fixtures are no digits."""

    def say(self, messages, seed):
        asks = sum(m["role"] != "system" for m in messages) % 2
        return (
            f"Is number {seed % 1000} in there?" if asks else f"I see number {seed % 1000} there."
        )


@pytest.mark.slow
def test_it_runs_on_small_copies_of_the_published_files(commands, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "data")
    import released

    monkeypatch.chdir(tmp_path)
    released.tallyqa(tmp_path / "TALLYQA")
    for folder, holds in (("COCO", "train2014"), ("VISUAL_GENOME", "VG_100K_2")):
        (tmp_path / folder).mkdir()
        (tmp_path / "TALLYQA" / holds).rename(tmp_path / folder / holds)
    for name in ("ocr_vqa", "rendered_text", "docvqa", "docci", "pixmo_cap"):
        getattr(released, name)(tmp_path / name.upper())
    released.pixelprose(tmp_path / "PIXELPROSE", tmp_path / "PIXELPROSE_IMAGES")
    replaced = {
        "experiments/moshika_vis.py": str(EXPERIMENT.with_name("digits.py")),
        "kyutai": "espeak",
        "20000": "2",
    }
    with standin_llm.serving(kind=AnyPicture) as server:
        for words in commands:
            words = [replaced.get(word, word) for word in words]
            more = {
                "write": ["--endpoint", server.url],
                "speak": ["--jobs", "1"],
                "encode": ["--workers", "0"],
            }
            assert cli.main(words + more.get(words[1], [])) == 0, words
    for name in made(commands, {("data", "encode"), ("data", "ingest"), ("dialogues", "records")}):
        reader = dataset.RecordReader(tmp_path / "data" / "moshika_vis" / name, expected=None)
        assert len(reader) > 0
        first = reader[0]
        assert (first.seconds > 0) == (name.startswith(("docci", "pixmo", "small")))
        assert (first.image is None) == (name == "small_talk")
