import json
import sys
import types

import numpy as np
import pytest

from mvjax import cli
from mvjax.data.ingest import items, moshi_finetune
from mvjax.data.records import dataset
from mvjax.data.speech import align, spoken

# As whisper-timestamped 1.15.9 returns it, some times as numpy's; a segment may be without words.
RESULT = {
    "text": " Hello there. Bye.",
    "segments": [
        {
            "id": 0,
            "seek": 0,
            "start": 0.24,
            "end": 0.98,
            "text": " Hello there.",
            "tokens": [50364, 2425, 456, 13, 50414],
            "temperature": 0.0,
            "avg_logprob": -0.3,
            "compression_ratio": 0.7,
            "no_speech_prob": 0.02,
            "confidence": 0.9,
            "words": [
                {
                    "text": "Hello",
                    "start": np.float64(0.24),
                    "end": np.float64(0.61),
                    "confidence": 0.95,
                },
                {"text": "there.", "start": 0.7, "end": 0.98, "confidence": 0.85},
            ],
        },
        {"id": 1, "seek": 0, "start": 1.0, "end": 1.1, "text": "", "tokens": []},
        {
            "id": 2,
            "seek": 0,
            "start": 1.5,
            "end": 2.02,
            "text": " Bye.",
            "tokens": [50364],
            "words": [{"text": "Bye.", "start": 1.5, "end": 2.02, "confidence": 0.9}],
        },
    ],
    "language": "en",
}
HEARD = (
    dataset.Word("Hello", 0.24, 0.61),
    dataset.Word("there.", 0.7, 0.98),
    dataset.Word("Bye.", 1.5, 2.0),  # clipped to the audio
)


@pytest.fixture
def whisper(monkeypatch):
    """The package with its model replaced; records what it is asked."""
    package = types.ModuleType("whisper_timestamped")
    asked = []

    def transcribe(model, audio, language=None, task="transcribe", **options):
        asked.append({"model": model, "audio": audio, "language": language} | options)
        return RESULT

    package.load_model = lambda name, device=None: f"{name} on {device}"
    package.transcribe = transcribe
    monkeypatch.setitem(sys.modules, "whisper_timestamped", package)
    align._whisper.cache_clear()
    yield asked
    align._whisper.cache_clear()


def test_whisper_hears_16_khz_and_returns_words(whisper):
    t = np.arange(48_000) / 24_000
    samples = np.sin(2 * np.pi * 300 * t).astype(np.float32)
    aligner = align.WhisperTimestamped(model="tiny.en", language="en")
    assert aligner(samples) == HEARD
    (asked,) = whisper
    assert asked["model"] == "tiny.en on cpu" and asked["language"] == "en"
    assert asked["vad"] is None and asked["beam_size"] == asked["best_of"] == 5
    assert asked["audio"].shape == (32_000,) and asked["audio"].dtype == np.float32
    expected = np.sin(2 * np.pi * 300 * np.arange(32_000) / 16_000)
    np.testing.assert_allclose(asked["audio"][500:-500], expected[500:-500], atol=2e-3)
    aligner(np.zeros(11 * 24_000, np.float32))
    assert whisper[1]["vad"] == "auditok"


def test_annotate_fills_only_what_is_missing():
    audio = np.stack([np.full(48_000, 0.1), np.full(48_000, 0.2)]).astype(np.float32)
    heard = []

    def aligner(samples):
        heard.append(float(samples[0]))
        return (dataset.Word(f"level {samples[0]:.1f}", 0.1 + samples[0], 1.0),)

    silent = spoken.Spoken("a", audio, words=None, turns=())
    one = align.annotate(silent, aligner)
    assert [word.text for word in one.words] == ["level 0.1"] and one.user_words is None
    assert [turn.speaker for turn in one.turns] == ["assistant"]
    both = align.annotate(silent, aligner, user=True)
    assert [word.text for word in both.user_words] == ["level 0.2"]
    assert [turn.speaker for turn in both.turns] == ["assistant", "user"]
    heard.clear()
    known = spoken.Spoken("a", audio, words=(), turns=(dataset.Turn("user", "hi"),))
    assert align.annotate(known, aligner) is known and not heard
    assert align.annotate(known, aligner, user=True).turns == known.turns
    assert heard == [pytest.approx(0.2)]


def test_files_without_transcript_get_one_in_moshi_finetunes_form(tmp_path, whisper, capsys):
    lines = []
    for name in "abc":
        spoken.write_audio(tmp_path / f"{name}.wav", np.full((2, 48_000), 0.1, np.float32))
        lines.append(json.dumps({"path": f"{name}.wav", "duration": 2.0}))
    lines.append(json.dumps({"path": "gone.wav", "duration": 2.0}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    known = '{"alignments": [["Yes", [0.1, 0.2], "SPEAKER_MAIN"]]}'
    (tmp_path / "b.json").write_text(known)
    words = ["data", "align", str(tmp_path / "data.jsonl"), "--model", "tiny.en"]
    assert cli.main(words) == 0
    assert "2 transcripts written\nskipped: 1 missing file" in capsys.readouterr().out
    assert len(whisper) == 4 and (tmp_path / "b.json").read_text() == known
    written = json.loads((tmp_path / "a.json").read_text())["alignments"]
    assert written[:2] == [
        ["Hello", [0.24, 0.61], "SPEAKER_MAIN"],
        ["Hello", [0.24, 0.61], "SPEAKER_USER"],
    ]
    found = {d.id: d for d in moshi_finetune.read(tmp_path, skips=items.SkippedItems())}
    assert found["c"].words == found["c"].user_words == HEARD
    assert cli.main(words) == 0
    assert "0 transcripts written" in capsys.readouterr().out


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "whisper_timestamped", None)
    align._whisper.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r'pip install "mvjax\[align\]"'):
        align.WhisperTimestamped()(np.zeros(24_000, np.float32))


def audio_and_manifest(folder, names, seconds=2.0):
    lines = []
    for n, name in enumerate(names):
        samples = np.full((2, round(seconds * 24_000)), n, np.float32)
        spoken.write_audio(folder / f"{name}.wav", np.minimum(samples, 1))
        lines.append(json.dumps({"path": f"{name}.wav", "duration": seconds}))
    (folder / "data.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("kind", [AssertionError, RuntimeError, IndexError])
def test_a_file_on_which_the_transcriber_fails_does_not_end_the_others(
    tmp_path, whisper, monkeypatch, capsys, kind
):
    audio_and_manifest(tmp_path, "abc")
    (tmp_path / "c.json").write_text('{"alignments": []}')
    package = sys.modules["whisper_timestamped"]
    transcribe = package.transcribe

    def fails(model, audio, **options):
        if audio[9_000] > 0.9:
            raise kind("inconsistent number of segments")
        return transcribe(model, audio, **options)

    monkeypatch.setattr(package, "transcribe", fails)
    words = ["data", "align", str(tmp_path)]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "1 transcript written\nskipped: 1 not aligned, 1 empty transcript" in printed
    assert f"{kind.__name__}: inconsistent number" in (tmp_path / "not_aligned.log").read_text()
    assert (tmp_path / "a.json").is_file() and not (tmp_path / "b.json").exists()
    (tmp_path / "a.json").unlink()
    monkeypatch.setattr(package, "transcribe", lambda *_, **__: [][0])
    assert cli.main(words) == 1  # on every file
    assert "a: IndexError: list index" in capsys.readouterr().err


def test_a_transcriber_that_always_fails_is_given_up(tmp_path):
    audio_and_manifest(tmp_path, [f"a{n}" for n in range(20)], 0.2)
    heard = []

    def broken(samples):
        heard.append(samples)
        raise RuntimeError("no kernel image")

    with pytest.raises(
        items.NothingRead, match=r"(?s)10 not aligned.*\n  a0: RuntimeError: no ker"
    ):
        align.annotate_files(tmp_path, broken, skips=items.SkippedItems())
    assert len(heard) == 10

    def no_memory(samples):
        raise MemoryError

    with pytest.raises(MemoryError):
        align.annotate_files(tmp_path, no_memory, skips=items.SkippedItems())
