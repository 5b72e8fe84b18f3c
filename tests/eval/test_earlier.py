"""`mvjax eval` again: nothing that is there is replaced unless it is contained in the new, or asked for."""

import json
import os
import subprocess
import sys

import pytest
import small_speaker

from mvjax import cli
from mvjax.commands import evaluate
from mvjax.eval import answering, asking, benchmarks, image_files
from mvjax.eval import model as eval_model
from mvjax.train import load


class Parrot(answering.Answerer):
    """Answers as a model would, without one: with the protocol's longest answer and the question."""

    def __init__(self, model, protocol):
        self.protocol = protocol

    def prepare(self, sample, *, spoken):
        return asking.Written(16, 0, [], [], "image", [])._replace(tokens=sample.prompt)

    def load(self, batch, images, rows):
        return answering.Inputs(None, [], [])

    def answer(self, batch, inputs, rows):
        said = [f"{self.protocol.max_tokens} {one}" for one in batch]
        return [answering.Answer(text, None, None, None, None, None) for text in said]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """RUN with an evaluation of 4 questions in two modes."""

    def trained(folder, step, mesh):
        return load.TrainedRun(small_speaker.CONFIG, {}, step or 400, identity="a checkpoint")

    monkeypatch.setattr(load, "trained", trained)
    monkeypatch.setattr(eval_model, "load", lambda *_: object.__new__(eval_model.LoadedModel))
    monkeypatch.setattr(answering, "Answerer", Parrot)
    monkeypatch.setitem(evaluate.DIGITS, "noise", lambda: small_speaker.Noise)
    words = "--benchmark noise --prompt text --prompt blind --limit 4"
    assert cli.main(["eval", str(tmp_path), *words.split()]) == 0
    return tmp_path


@pytest.fixture
def asked(run, capsys):
    """Asks RUN; returns the status, what was said and the number of lines; `at` is RUN/eval."""

    def ask(words):
        status = cli.main(["eval", str(run), "--benchmark", "noise", *words.split()])
        lines = (ask.at / "noise.samples.jsonl").read_bytes().count(b"\n")
        return status, capsys.readouterr().err, lines

    ask.at = run / "eval"
    return ask


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("words", "fact"),
    [
        ("--limit 2", "4 samples, now 2"),
        ("--limit 4 --seed 2", "seed 1, now 2"),
        ("--limit 4 --tail 0.5 --max-tokens 9", "tail 1.0, now 0.5; max_tokens 8, now 9. To keep"),
        ("--limit 6 --prompt text", "prompts blind (of 4 samples; ask for them, too)"),
    ],
)
def test_what_would_be_lost_is_named_and_kept(asked, words, fact):
    before = contents(asked.at)
    status, said, _ = asked(words)
    assert status == 2 and fact in said and "--as NAME" in said and "--again" in said
    assert contents(asked.at) == before


@pytest.mark.parametrize(
    "words",
    ["--tail nan", "--lead-in inf", "--template {prompt}{foo}", "--template {prompt",
     "--template {prompt.x}", "--template {0}{prompt}", "--as a/b", "--as .", "--prompt audio --limit -3"],
)  # fmt: skip
def test_options_are_checked_before_anything_is_changed(asked, words):
    before = contents(asked.at)
    for more in ("", " --again"):
        assert asked(words + more)[0] == 2
    assert contents(asked.at) == before


def test_modes_that_were_asked_before_stay_and_more_questions_go_on(asked):
    result = json.loads((asked.at / "noise.json").read_text())
    assert asked("--prompt text --limit 4")[::2] == (0, 8)
    again = json.loads((asked.at / "noise.json").read_text())
    assert again.pop("seconds") == result.pop("seconds") and again == result
    assert {"text", "blind"} < again["table"][-1].keys()
    assert asked("--prompt text --prompt blind --limit 5")[::2] == (0, 10)
    assert json.loads((asked.at / "noise.json").read_text())["samples"] == 5


def test_a_refusal_comes_before_the_model_is_loaded_and_names_another_checkpoint_after(
    asked, monkeypatch
):
    other = load.TrainedRun(small_speaker.CONFIG, {}, 500, identity="another")
    loaded = []
    monkeypatch.setattr(load, "trained", lambda *_, **how: loaded.append(1) or other)
    assert asked("--limit 4 --seed 2")[0] == 2 and not loaded
    status, said, _ = asked("--limit 4")
    facts = "step 400, now 500; checkpoint a checkpoint, now another. To keep"
    assert status == 2 and loaded and facts in said


@pytest.mark.parametrize(
    "content",
    ["", "[1]", '{"a": null}', '{"table": [1]}', '{"table": [{"kind": "all", "n": "x"}]}',
     '{"table": [{"kind": "all", "n": 4}], "protocol": [1]}'],
)  # fmt: skip
def test_a_result_that_cannot_be_read_is_refused_until_it_is_replaced(asked, content):
    (asked.at / "noise.json").write_text(content)
    status, said, _ = asked("--limit 4")
    assert status == 2 and "another evaluation is there: " in said
    assert (asked.at / "noise.json").read_text() == content
    assert asked("--limit 4 --prompt text --again")[::2] == (0, 4)


def test_another_name_keeps_both_and_again_replaces_result_and_answers(asked):
    before = contents(asked.at)
    assert asked("--limit 2 --seed 2 --prompt text --as other")[0] == 0
    after = contents(asked.at)
    assert before.items() < after.items()
    other = json.loads(after["other.json"])
    assert (other["benchmark"], other["samples"], other["protocol"]["seed"]) == ("noise", 2, 2)
    assert asked("--limit 2 --seed 2 --prompt text --again")[::2] == (0, 2)
    assert json.loads((asked.at / "noise.json").read_text())["table"] == other["table"]


def test_answers_about_images_that_changed_are_asked_again(asked, monkeypatch, tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(2)]
    for n, path in enumerate(paths):
        path.write_bytes(b"image %d" % n)
    samples = [
        benchmarks.Sample(str(n), "k", "?", image=image_files.ImageFile(path), shows=n)
        for n, path in enumerate(paths)
    ]
    monkeypatch.setattr(small_speaker.Noise, "samples", lambda *_: samples)
    words = "--prompt text --prompt blind --as other"
    assert asked(words)[0] == 0

    def lines():
        return (asked.at / "other.samples.jsonl").read_text().splitlines()

    assert len(before := lines()) == 4
    os.utime(paths[0], (1, 1))  # a copy
    assert asked(words)[:2] == (0, f"{asked.at}/other.samples.jsonl: goes on after 4 answers\n")
    paths[0].write_bytes(b"image 7")
    assert "1 answer about images that have changed since: asked again\n" in asked(words)[1]
    assert lines()[:4] == before and len(lines()) == 5


def test_one_evaluation_at_a_time(asked):
    program = f"""
from pathlib import Path
from mvjax import locks
with locks.held(Path({str(asked.at / "noise.lock")!r})):
    print(flush=True), input()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        before = contents(asked.at)
        status, said, _ = asked("--limit 4 --again")
        assert status == 2 and f"another evaluation works on it (process {holder.pid}" in said
        after = contents(asked.at)
        holder.communicate("\n")
    assert after == before


def test_damaged_and_repeated_lines_are_dropped_alone_and_told(asked):
    path = asked.at / "noise.samples.jsonl"

    def answers():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return sorted((line["mode"], line["id"], line["said"]) for line in lines)

    want, lines = answers(), path.read_bytes().splitlines(keepends=True)
    damaged = [b'{"id": 5}\n', b"\xff\x00\n"]
    path.write_bytes(b"".join([lines[0], *damaged, *lines[2:], *lines[4:6]]) + b'{"id": "torn')
    status, said, _ = asked("--prompt text --limit 4")
    assert status == 0 and answers() == want
    assert "dropped 2 answers given twice; 2 damaged lines, asked again: line 2 (" in said
    assert asked("--prompt text --limit 4")[1].count("dropped") == 0
