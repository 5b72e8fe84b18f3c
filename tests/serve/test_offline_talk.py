"""`mvjax talk`: the timeline of a conversation, its files, and what is refused."""

import dataclasses
import json
import struct
import wave

import numpy as np
import pytest
import standin

from mvjax import cli, types
from mvjax.commands import speakers
from mvjax.config import talking
from mvjax.runtimes import loading
from mvjax.serve import asking, recordings, talk

HOW = talking.TalkConfig(lead_in=0.16, tail=0.24, text_temperature=0.0, audio_temperature=0.0)
LOUD = np.full(2 * types.FRAME_SAMPLES - 100, 0.5, np.float32)


def test_silence_question_silence_and_every_image_from_its_place_on():
    speaker = standin.speaker()
    first, second = talk.Shown("a", standin.picture(0)), talk.Shown("b", standin.picture(255))
    asked = [first, talk.Question("one", LOUD), second, talk.Question("two", LOUD)]
    done = talk.converse(speaker, asked, HOW, seed=3)
    frames = 2 + 2 + 3 + 2 + 3
    assert len(done.user) == len(done.assistant) == frames * types.FRAME_SAMPLES
    loud = np.abs(done.user.reshape(frames, -1)).max(axis=1) > 0
    assert loud.tolist() == [False] * 2 + [True] * 2 + [False] * 3 + [True] * 2 + [False] * 3
    written = done.transcript
    times = [(q["asked"], q["start"], q["end"]) for q in written["questions"]]
    assert times == [("one", 0.16, 0.32), ("two", 0.56, 0.72)]
    assert [image["from"] for image in written["images"]] == [0.0, 0.56]
    assert written["gates"] == [standin.SEEN] * frames and written["seed"] == 3
    loudest = f"w{4 + 32 % standin.WORDS}"  # the stand-in writes a word for what it heard
    assert all(loudest in q["answer"] for q in written["questions"])
    pieces = written["transcript"]
    assert [p["start"] for p in pieces if p["text"].strip() == loudest] == [0.24, 0.32, 0.64, 0.72]
    assert np.abs(done.assistant).max() > 0.3


def test_recordings_of_other_rates_are_read_and_bounded(tmp_path):
    seconds = 0.5
    tone = np.sin(2 * np.pi * 300 * np.arange(round(44_100 * seconds)) / 44_100)
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44_100)
        both = np.stack([tone, 0 * tone], axis=1)
        file.writeframes((both * 32767).astype("<i2").tobytes())
    read = recordings.read(tmp_path / "tone.wav", max_seconds=1.0)
    assert read.dtype == np.float32 and len(read) == seconds * types.SAMPLE_RATE
    spectrum = np.abs(np.fft.rfft(read))
    assert abs(np.argmax(spectrum) / seconds - 300) < 4 and abs(np.abs(read).max() - 0.5) < 0.02
    with pytest.raises(ValueError, match="tone.wav: expected at most 0.25 s, got 0.5; cut it"):
        recordings.read(tmp_path / "tone.wav", max_seconds=0.25)
    (tmp_path / "no.wav").write_bytes(b"nothing")
    header = bytearray((tmp_path / "tone.wav").read_bytes())
    header[24:28] = (4_000_000_000).to_bytes(4, "little")
    (tmp_path / "fast.wav").write_bytes(header)
    with pytest.raises(ValueError, match="fast.wav: expected 4000 to 768000 samples a second"):
        recordings.read(tmp_path / "fast.wav", max_seconds=1.0)
    for name in ("no.wav", "absent.flac"):
        with pytest.raises(ValueError, match=rf"{name}: .*expected wav, flac, mp3 or Ogg Vorbis"):
            recordings.read(tmp_path / name, max_seconds=1.0)
    samples = np.full(2400, np.nan, "<f4").tobytes()
    head = struct.pack("<IHHIIHH", 16, 3, 1, 24_000, 96_000, 4, 32)
    body = b"WAVEfmt " + head + b"data" + struct.pack("<I", len(samples)) + samples
    (tmp_path / "nan.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    with pytest.raises(ValueError, match="nan.wav: expected finite samples, some are not"):
        recordings.read(tmp_path / "nan.wav", max_seconds=1.0)


def test_what_is_written_is_stereo_and_clipped(tmp_path):
    left, right = np.array([0.5, 2.0], np.float32), np.array([-3.0, 0.0], np.float32)
    recordings.write(tmp_path / "a.wav", left, right)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getframerate()) == (2, types.SAMPLE_RATE)
        samples = np.frombuffer(file.readframes(2), "<i2").reshape(2, 2)
    np.testing.assert_array_equal(samples, [[16384, -32767], [32767, 0]])


def test_a_typed_question_is_spoken_in_whole_frames():
    pytest.importorskip("espeakng_loader")
    frames = asking.spoken("what digit is this", "en-us")
    assert frames.shape[1] == types.FRAME_SAMPLES and 10 < len(frames) < 25
    assert np.abs(frames).max() > 0.1
    for text, voice, message in (
        (" ", "en-us", "at least one word"),
        ("a", "xx-no", "known voice"),
        ("a" * 2000, "en-us", "at most 1000 characters"),
    ):
        with pytest.raises(ValueError, match=message):
            asking.spoken(text, voice)


def test_the_command_writes_both_files_and_checks_first(tmp_path, monkeypatch, capsys):
    opened = speakers.Opened(standin.speaker(), "torch", "")
    monkeypatch.setattr(speakers, "open_speaker", lambda args, minutes: opened)
    monkeypatch.setattr(loading, "read_talk", lambda folder: HOW)
    recordings.write(tmp_path / "q.wav", LOUD, LOUD)
    (tmp_path / "x.png").write_bytes(standin.picture(0))
    out = tmp_path / "answer.wav"
    command = [
        "talk",
        str(tmp_path / "export"),
        "--image",
        str(tmp_path / "x.png"),
        "--out",
        str(out),
    ]
    asked = ["--audio", str(tmp_path / "q.wav"), "--tail", "0.8", "--seed", "5"]
    assert cli.main([*command, *asked]) == 0
    written = json.loads(out.with_suffix(".json").read_text())
    assert written["talk"] == dataclasses.asdict(dataclasses.replace(HOW, tail=0.8))
    assert written["seconds"] == 0.16 + 0.16 + 0.8 and written["seed"] == 5
    assert f"q.wav\n    {written['questions'][0]['answer']}\n" == capsys.readouterr().out
    with wave.open(str(out)) as file:
        assert file.getnframes() == 14 * types.FRAME_SAMPLES
    assert cli.main(command) == 2
    assert "give --audio WAV or --text QUESTION" in capsys.readouterr().err
    assert cli.main([*command[:-1], "answer.mp3", *asked]) == 2
    assert "ends with .wav" in capsys.readouterr().err
    (tmp_path / "x.png").write_bytes(b"no image")
    assert cli.main([*command, *asked]) == 2
    assert "x.png: image" in capsys.readouterr().err


@pytest.mark.parametrize(
    "out", ["export/talk.wav", "q.wav", "hard.wav", "own.wav", "d.wav", "q.wav/a.wav"]
)
def test_no_file_is_destroyed_and_the_place_is_checked_first(out, tmp_path, monkeypatch, capsys):
    """Neither the export's, nor the question, nor a JSON of others; nothing is loaded before."""
    monkeypatch.setattr(loading, "read_talk", None)
    folder = tmp_path / "export"
    (tmp_path / "d.wav").mkdir()
    folder.mkdir()
    for name in ("export/talk.json", "own.json"):
        (tmp_path / name).write_text('{"lead_in": 5.0}')
    recordings.write(tmp_path / "q.wav", LOUD, LOUD)
    (tmp_path / "hard.wav").hardlink_to(tmp_path / "q.wav")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    command = ["talk", str(folder), "--audio", str(tmp_path / "q.wav")]
    assert cli.main([*command, "--out", str(tmp_path / out)]) == 2
    assert "expected" in (said := capsys.readouterr().err) or "--out: " in said
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}


def test_a_recording_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    recordings.write(tmp_path / "a.wav", LOUD, LOUD)
    before = (tmp_path / "a.wav").read_bytes()

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:9])
        raise OSError("no space left")

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        recordings.write(tmp_path / "a.wav", LOUD[:9], LOUD[:9])
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    assert (tmp_path / "a.wav").read_bytes() == before


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e12, -1.0])
def test_silences_are_bounded(value):
    with pytest.raises(ValueError, match="talk: expected .*tail"):
        dataclasses.replace(HOW, tail=value)


@pytest.mark.parametrize("option", ["--image", "--audio"])
def test_a_file_that_is_not_there_is_told_before_a_model_is_loaded(option, tmp_path, capsys):
    words = ["talk", str(tmp_path), "--out", str(tmp_path.parent / "a.wav"), "--text", "what"]
    assert cli.main([*words, option, str(tmp_path / "none")]) == cli.USER_ERROR
    assert "none: expected an image or a recording, found no such file" in capsys.readouterr().err
