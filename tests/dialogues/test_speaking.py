"""From written dialogues to stereo files with word times."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mvjax import types
from mvjax.data import images
from mvjax.data.ingest import items, moshi_finetune
from mvjax.data.records import dataset
from mvjax.dialogues import speaking, speech, store, tts
from mvjax.digits import world

TEXTS = ("what is it", "it is a seven", "which colour", "i see it in red")
QUIET = 1e-4


@pytest.fixture(scope="module")
def picture():
    return images.encode_png(world.scenes("test", 1, 0)[0].image)


def written(path, picture, *names, bad=()):
    """Dialogues of these names; those in `bad` have a turn that no voice can say."""
    (path.parent / "p.png").write_bytes(picture)
    with store.opened(path) as kept:
        for name in names:
            texts = (*TEXTS[:3], "...") if name in bad else TEXTS
            turns = tuple(
                dataset.Turn("assistant" if n % 2 else "user", t) for n, t in enumerate(texts)
            )
            facts = {"digit": 7}
            kept.add(
                store.WrittenDialogue(name, turns, ("PROP", "PROP"), image="p.png", facts=facts)
            )
    return path


def read(folder):
    skips = items.SkippedItems()
    found = {s.id: s for s in moshi_finetune.read(folder, skips=skips)}
    assert not skips.counts
    return found


def speak(source, out, voices=None, **options):
    return speaking.speak(
        source, out, voices or tts.Espeak(), **({"report": lambda line: None} | options)
    )


def test_both_sides_sound_where_their_words_are(tmp_path, picture):
    source = written(tmp_path / "d.jsonl", picture, "a", "b")
    summary = speak(source, tmp_path / "out")
    found = read(tmp_path / "out")
    assert (summary.spoken, summary.failed, set(found)) == (2, [], {"a", "b"})
    seconds = 0.0
    for dialogue in found.values():
        audio = dialogue.samples()
        seconds += audio.shape[1] / types.SAMPLE_RATE
        assert audio.shape[1] % types.FRAME_SAMPLES == 0
        assert (dialogue.kinds, dialogue.facts) == (("PROP", "PROP"), {"digit": 7})
        assert dialogue.image == picture
        assert [t.text for t in dialogue.turns] == list(TEXTS)
        for row, words, texts in (
            (audio[0], dialogue.words, TEXTS[1::2]),
            (audio[1], dialogue.user_words, TEXTS[::2]),
        ):
            assert [w.text for w in words] == " ".join(texts).split()
            silent = np.ones(len(row), bool)
            for word in words:
                assert word.end > word.start
                span = slice(*(round(t * types.SAMPLE_RATE) for t in (word.start, word.end)))
                assert np.abs(row[span]).max() > 0.02, word
                silent[max(0, span.start - 1200) : span.stop + 1200] = False
            assert silent.mean() > 0.3 and np.abs(row[silent]).max() < QUIET
    assert abs(summary.seconds - seconds) < 1e-6 and len(summary.gaps) == 6


def test_assistants_sound_alike_and_users_differ(tmp_path, picture):
    seen = []

    class Listening(tts.Espeak):
        def speak(self, lines):
            seen.append([line.voice for line in lines])
            return super().speak(lines)

    names = [f"d{n}" for n in range(8)]
    speak(written(tmp_path / "d.jsonl", picture, *names), tmp_path / "out", Listening())
    assert {v for voices in seen for v in voices[1::2]} == {tts.Espeak().assistant}
    users = [set(voices[::2]) for voices in seen]
    assert all(len(voices) == 1 for voices in users) and len(set.union(*users)) > 3


class Tones:
    """Every word is 0.2 s of a tone that its seed decides."""

    assistant, users = "a", ("u", "v")

    def speak(self, lines):
        return [self._one(line) for line in lines]

    def _one(self, line):
        words = line.text.split()
        tone = np.sin(np.arange(len(words) * 4800) * (0.05 + line.seed % 100 / 1000))
        spans = tuple(dataset.Word(w, n / 5, (n + 1) / 5) for n, w in enumerate(words))
        return speech.SynthesizedSpeech(tone.astype(np.float32), spans, ())


def test_one_seed_one_dialogue_whatever_comes_before(tmp_path, picture):
    one = written(tmp_path / "1.jsonl", picture, "a", "b")
    other = written(tmp_path / "2.jsonl", picture, "b")
    for source, out, seed in ((one, "o1", 0), (other, "o2", 0), (other, "o3", 1)):
        speak(source, tmp_path / out, Tones(), seed=seed)
    first, second, third = (read(tmp_path / out)["b"] for out in ("o1", "o2", "o3"))
    np.testing.assert_array_equal(first.samples(), second.samples())
    assert first.words == second.words != third.words


def test_several_processes_speak_all_and_a_second_run_adds_what_is_new(tmp_path, picture):
    out = tmp_path / "out"
    source = written(tmp_path / "d.jsonl", picture, *(f"d{n}" for n in range(5)))
    first = speak(source, out, jobs=2)
    kept = {p: p.stat().st_mtime_ns for p in out.rglob("*.wav")}
    (out / "part-00009").mkdir()  # as a kill leaves it: no listing
    (out / "part-00009" / "d7.wav").write_bytes(b"RIFF")
    second = speak(written(tmp_path / "d.jsonl", picture, "e0", "e1"), out)
    assert (first.spoken, second.spoken, second.skipped) == (5, 2, 5)
    assert set(read(out)) == {*(f"d{n}" for n in range(5)), "e0", "e1"}
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items())
    assert not (out / "part-00009" / "d7.wav").exists()


def test_what_cannot_be_spoken_is_listed_and_tried_again(tmp_path, picture):
    source = written(tmp_path / "d.jsonl", picture, "a", "b", "c", "d", "e", bad=("d",))
    summary = speak(source, tmp_path / "out")
    assert summary.spoken == 4 and [name for name, _ in summary.failed] == ["d"]
    (line,) = (tmp_path / "out" / speaking.FAILURES).read_text().splitlines()
    assert json.loads(line)["id"] == "d" and "silence" in json.loads(line)["reason"]
    again = speak(source, tmp_path / "out")
    assert (again.spoken, again.skipped, len(again.failed)) == (0, 4, 1)
    assert "1 failed" in again.text() and "d: " in again.text()


class Moody(Tones):
    """Raises whatever error the first line names."""

    def speak(self, lines):
        name = lines[0].text.split()[0]
        error = {"assert": AssertionError, "index": IndexError, "run": RuntimeError, "os": OSError}
        if name in error:
            raise error[name](f"{name} of the synthesizer")
        if name == "import":
            raise ModuleNotFoundError("no torch")
        return super().speak(lines)


def moods(path, *first_words):
    with store.opened(path) as kept:
        for n, word in enumerate(first_words):
            turns = (dataset.Turn("user", f"{word} it"), dataset.Turn("assistant", "yes"))
            kept.add(store.WrittenDialogue(f"d{n}", turns))
    return path


def test_one_bad_dialogue_never_ends_the_others(tmp_path):
    source = moods(tmp_path / "d.jsonl", "assert", "index", "run", "os", "is")
    source.write_bytes(b"junk\n" + source.read_bytes())
    said = []
    summary = speak(source, tmp_path / "out", Moody(), report=said.append)
    assert said[-1] == "dialogues: 1/6 spoken, 5 failed"  # the line that is none, too
    assert summary.spoken == 1 and set(read(tmp_path / "out")) == {"d4"}
    listed = [
        json.loads(x) for x in (tmp_path / "out" / speaking.FAILURES).read_text().splitlines()
    ]
    assert [x["id"].split()[-1] for x in listed] == ["1", "d0", "d1", "d2", "d3"]
    assert listed[1]["reason"] == "AssertionError: assert of the synthesizer"


def test_an_id_too_long_for_a_file_name_is_spoken_as_the_others(tmp_path):
    source, ids = tmp_path / "d.jsonl", {"https://pictures.example/" + "x" * 300, "short"}
    with store.opened(source) as kept:
        for name in sorted(ids):
            turns = (dataset.Turn("user", "is it"), dataset.Turn("assistant", "yes"))
            kept.add(store.WrittenDialogue(name, turns))
    assert speak(source, tmp_path / "out", Tones()).spoken == 2
    assert set(read(tmp_path / "out")) == ids
    assert speak(source, tmp_path / "out", Tones()).skipped == 2


def test_a_synthesizer_that_is_not_installed_or_never_speaks_ends_the_run(tmp_path):
    with pytest.raises(ModuleNotFoundError, match="no torch"):
        speak(moods(tmp_path / "d.jsonl", "import", "is"), tmp_path / "o1", Moody())
    source = moods(tmp_path / "e.jsonl", *["run"] * 16, "is")  # in parts of five
    with pytest.raises(ValueError, match="of the first 10 dialogues none can be spoken"):
        speak(source, tmp_path / "o2", Moody(), jobs=1)


class Dying(Tones):
    """Takes its process along."""

    def speak(self, lines):
        os._exit(9)


def test_a_process_that_dies_is_told(tmp_path):
    source = moods(tmp_path / "d.jsonl", "is", "it")
    with pytest.raises(ValueError, match="died .*fewer --jobs"):
        speak(source, tmp_path / "out", Dying(), jobs=2)


@pytest.mark.slow
def test_an_interrupt_ends_all_processes_without_a_traceback(tmp_path):
    out, source = tmp_path / "out", moods(tmp_path / "d.jsonl", *["is"] * 3000)
    argv = ["dialogues", "speak", str(source), "--out", str(out), "--jobs", "2"]
    # background jobs of a shell ignore Ctrl-C
    heard = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    running = subprocess.Popen(
        [sys.executable, "-c", f"{heard}\nfrom mvjax import cli\nsys.exit(cli.main())", *argv],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(out.glob("part-*/*.wav")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=20)
    assert (running.returncode, said) == (130, b"mvjax dialogues: interrupted\n")


def test_a_damaged_part_is_named_with_what_to_do(tmp_path, picture):
    source = written(tmp_path / "d.jsonl", picture, "a")
    speak(source, tmp_path / "out", Tones())
    (tmp_path / "out" / "part-00000" / "a.json").write_bytes(b"")
    with pytest.raises(ValueError, match="part-00000.jsonl: damaged, .*delete this file"):
        speak(source, tmp_path / "out", Tones())
    (tmp_path / "out" / "part-00000.jsonl").unlink()
    assert speak(source, tmp_path / "out", Tones()).spoken == 1 and set(read(tmp_path / "out")) == {
        "a"
    }


def test_a_missing_picture_and_a_voice_that_never_speaks(tmp_path, picture):
    source = written(tmp_path / "d.jsonl", picture, "a")
    (tmp_path / "p.png").unlink()
    with pytest.raises(
        ValueError, match="of the first 1 dialogue none .*\\n  a: .*p.png: no such file"
    ):
        speak(source, tmp_path / "out")
