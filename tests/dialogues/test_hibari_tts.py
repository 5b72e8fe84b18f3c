"""hibari: word times from the network's durations, its own text rules, samples that follow from the seed."""

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mvjax import cli, types
from mvjax.commands import dialogues
from mvjax.dialogues import hibari_tts, tts

pytest.importorskip("hibari")
ROOT = Path(__file__).parents[2]
SAID = "It costs $3.2 billion, Dr. Smith said at 9:30 on 10/12/2019, for 5km & more."
HASH = """
import hashlib, sys
from mvjax.dialogues import hibari_tts
print(hashlib.sha256(hibari_tts.synthesize(sys.argv[1], 3).samples.tobytes()).hexdigest())
"""


def tool(name="check_word_times"):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_words_as_written_have_the_times_of_what_is_read_for_them():
    said = hibari_tts.synthesize(SAID, 1)
    assert [word.text for word in said.words] == SAID.split()
    edges = [t for word in said.words for t in (word.start, word.end)]
    assert edges == sorted(edges) and edges[-1] <= len(said.samples) / types.SAMPLE_RATE
    lasts = {word.text: word.end - word.start for word in said.words}
    assert lasts["10/12/2019,"] > 1.5 > 4 * lasts["on"]  # "October twelfth, 2019"
    assert lasts["billion,"] > 0.7 and lasts["5km"] > 0.7 and lasts["Dr."] > 0.25
    sounds = "".join(p.text for p in said.phonemes if p.text != "_")
    assert "dˈɑləɹz" in sounds and "dˈɑktəɹ" in sounds and "kəlˈɑməTəɹz" in sounds
    assert said.samples.dtype == np.float32 and 0.1 < np.abs(said.samples).max() <= 1


def test_words_spelled_alike_are_told_apart():
    said = hibari_tts.synthesize("I will read what you have read.", 1)
    first, second = (word for word in said.words if word.text.startswith("read"))
    heard = [
        "".join(p.text for p in said.phonemes if word.start <= p.start < word.end and p.text != "_")
        for word in (first, second)
    ]
    assert heard == ["ɹˈid", "ɹˈɛd"]


def test_a_sign_that_is_not_said_takes_no_time():
    words = hibari_tts.synthesize('He said "stop." Then — well, he went.', 1).words
    assert [w.text for w in words if w.start == w.end] == ["—"]
    assert words[3].start - words[2].end > 0.2  # between two sentences


def test_long_sentences_are_cut_where_hibari_cuts_them_and_never_longer():
    model = hibari_tts._load()
    clauses = "and so the big dog goes, " * 60
    chunks = list(hibari_tts._chunks(hibari_tts._read(model, clauses)))
    assert [symbols for symbols, _ in chunks] == model.phonemize(clauses)
    endless = hibari_tts._read(model, "the big dog " * 100)
    cut = [symbols for symbols, _ in hibari_tts._chunks(endless)]
    assert max(map(len, cut)) <= 400 and " ".join(cut) == endless.symbols.strip()


def test_samples_follow_from_text_and_seed_alone():
    engine = hibari_tts.Hibari()
    lines = [
        tts.TtsLine("it is a red seven", engine.assistant, 3),
        tts.TtsLine("is it red", engine.users[7], 4),  # of eSpeak NG
        tts.TtsLine("quixotry, thrice", engine.assistant, 5),  # one word is in no lexicon
    ]
    there, back = engine.speak(lines), engine.speak(lines[::-1])[::-1]
    for one, other in zip(there, back, strict=True):
        np.testing.assert_array_equal(one.samples, other.samples)
        assert one.words == other.words
    argv = [sys.executable, "-c", HASH, lines[0].text]
    elsewhere = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert elsewhere.strip() == hashlib.sha256(there[0].samples.tobytes()).hexdigest()
    other_seed = hibari_tts.synthesize(lines[0].text, 4).samples
    assert 0 < np.abs(other_seed - there[0].samples).max() < 0.05  # noise differs, words do not


@pytest.mark.parametrize("text", ["", "…"])
def test_a_text_without_a_word_is_refused(text):
    with pytest.raises(ValueError, match="expected text with at least one word that is said, got"):
        hibari_tts.synthesize(text, 1)


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_word_times_are_those_of_a_recognizer(count):
    check = tool()
    starts, ends = check.errors(hibari_tts.Hibari(), check.sentences(count, 0))
    for found in (np.abs(starts), np.abs(ends)):
        assert len(found) > 8 * count
        assert np.median(found) <= 0.04 and found.max() <= 0.2


def test_a_number_past_the_text_rules_is_refused():
    with pytest.raises(ValueError, match="text rules cannot read '1111.*write it in words"):
        hibari_tts.synthesize("1" * 60, 0)


def test_a_voice_that_neither_hibari_nor_espeak_has_is_refused():
    with pytest.raises(
        ValueError, match="its only voice, heart, or one of eSpeak NG .* got 'bella'"
    ):
        dialogues._voices("hibari", "bella", None)
    with pytest.raises(ValueError, match="NAME.:RATE.:PITCH.. such as .* got 'en-us:fast'"):
        dialogues._voices("hibari", None, ["heart", "en-us:fast"])
    assert dialogues._voices("hibari", "en-us+f2:190", ["heart"]).users == ("heart",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("check_word_times --sentences 0", "expected 1 to 3000 --sentences and a --seed of 0"),
        ("check_word_times --seed -1", "a --seed of 0 or more, got 200, -1"),
        ("bench_voice NOWHERE", "error: NOWHERE: "),
        ("bench_voice NOWHERE --per-kind 0", "expected --per-kind of 1 or more"),
    ],
)
def test_tools_refuse_bad_arguments_in_one_line(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(SystemExit) as status:
        tool(words.split()[0]).main()
    assert status.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_it_is_the_default_where_it_is_installed(monkeypatch, capsys, tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text('{"id": "a", "turns": [{"speaker": "assistant", "text": "it is red"}]}\n')
    argv = ["dialogues", "speak", str(file), "--jobs", "1", "--out"]
    assert cli.main([*argv, str(tmp_path / "one")]) == 0
    assert "hibari: the assistant is heart" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "hibari", None)
    monkeypatch.setattr(dialogues.extras, "installed", lambda module: module != "hibari")
    assert cli.main([*argv, str(tmp_path / "two")]) == 0
    assert "espeak: the assistant is en-us" in capsys.readouterr().out
    assert cli.main([*argv, str(tmp_path / "three"), "--tts", "hibari"]) == 2
    said = capsys.readouterr().err
    assert "mvjax dialogues needs hibari: pip install 'mvjax[hibari]'" in said
    hibari_tts._load.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="expected the package hibari-tts, got none"):
        hibari_tts.synthesize("it is red", 1)
