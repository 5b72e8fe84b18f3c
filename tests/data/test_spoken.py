import io

import numpy as np
import pytest
import soundfile
from scipy import signal

from mvjax import types
from mvjax.data.records import dataset
from mvjax.data.speech import spoken


def tones(seconds, rate, hertz=(300.0, 1000.0)):
    t = np.arange(round(seconds * rate)) / rate
    return np.stack([0.4 * np.sin(2 * np.pi * f * t) for f in hertz]).astype(np.float32)


def encoded(samples, rate, form="WAV", **options):
    file = io.BytesIO()
    soundfile.write(file, samples.T, rate, format=form, **options)
    return file.getvalue()


def dialogue(audio):
    return spoken.Spoken("a", audio, words=(), turns=(dataset.Turn("user", "hi"),))


def test_a_file_keeps_its_sides_and_is_converted(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(tones(1.5, 44_100), 44_100))
    samples = dialogue(path).samples()
    assert samples.shape == (2, 36_000) and samples.dtype == np.float32
    inside = slice(1000, 35_000)  # the ends ring
    np.testing.assert_allclose(samples[:, inside], tones(1.5, 24_000)[:, inside], atol=2e-3)


@pytest.mark.parametrize(("form", "tolerance"), [("FLAC", 1e-4), ("OGG", 0.05), ("MP3", 0.05)])
def test_formats(form, tolerance):
    samples = spoken.read_audio(encoded(tones(1.0, 24_000), 24_000, form), channels=2)
    inside = slice(4000, 20_000)
    np.testing.assert_allclose(samples[:, inside], tones(1.0, 24_000)[:, inside], atol=tolerance)


def test_writing_and_reading(tmp_path):
    path = tmp_path / "a.wav"
    spoken.write_audio(path, tones(0.5, 24_000))
    samples = spoken.read_audio(path, channels=2)
    np.testing.assert_allclose(samples, tones(0.5, 24_000), atol=2**-15)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "audio of 0 bytes: expected WAV, FLAC"),
        (b"RIFF" + bytes(60), "expected WAV, FLAC"),
        (encoded(tones(0.1, 24_000)[:1], 24_000), r"expected 2 channels \(left the .*, got 1"),
        (encoded(tones(0.1, 24_000), 4_000), "a rate of 8000 to 192000 Hz, got 4000"),
        (encoded(tones(0, 24_000), 24_000), "expected audio, got no samples"),
        (encoded(tones(2.5, 24_000), 24_000), "at most 2 s of audio, got 2.5 s"),
        (encoded(np.full((2, 9), np.nan), 24_000, subtype="FLOAT"), "some are NaN"),
        (encoded(tones(1.0, 24_000), 24_000, "FLAC")[:9000], "(promises|expected WAV, FLAC)"),
    ],
)
def test_refused_audio_is_named(data, message):
    with pytest.raises(ValueError, match=message):
        spoken.read_audio(data, channels=2, max_seconds=2.0)


def test_long_samples_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a: at most 1 s of audio, got 1.5 s"):
        dialogue(tones(1.5, 24_000)).samples(max_seconds=1.0)
    with pytest.raises(FileNotFoundError, match=r"none\.wav: no such audio file"):
        dialogue(tmp_path / "none.wav").samples()


def test_words_imply_turns():
    word = dataset.Word
    turns = spoken.turns_of(
        [word("Hello ", 0.1, 0.3), word("there.", 0.4, 0.6), word("Yes.", 2.0, 2.2)],
        [word("Can", 1.0, 1.1), word("you?", 1.2, 1.4)],
    )
    assert [(t.speaker, t.text) for t in turns] == [
        ("assistant", "Hello there."),
        ("user", "Can you?"),
        ("assistant", "Yes."),
    ]


def test_word_times_are_fitted_to_the_audio():
    word = dataset.Word
    said = [word("a", -0.01, 0.2), word("b", 0.9, 1.2), word("c", 1, 0.5)]
    (fitted,) = spoken.fit_words(1.0, said)
    assert fitted == (word("a", 0.0, 0.2), word("b", 0.9, 1.0), word("c", 1.0, 1.0))
    late = [word("d", 1.01, 1.2)]
    assert spoken.fit_words(1.0, said, late) == (fitted, ())  # most words are not late
    with pytest.raises(ValueError, match=r"within 1.00 s .*Word\(text='d'.*\(1 of 1\)"):
        spoken.fit_words(1.0, late)
    with pytest.raises(ValueError, match="2 of 3"):
        spoken.fit_words(1.0, said[:1], late * 2)
    with pytest.raises(ValueError, match="1 of 1"):
        spoken.fit_words(1.0, [word("d", float("nan"), 1.2)])


def test_samples_that_a_filter_would_make_infinite_are_refused(tmp_path):
    path = tmp_path / "loud.wav"
    for value in (np.float32(3e38), np.float32("nan"), np.float32("inf")):
        soundfile.write(path, np.full((4800, 2), value), 48_000, subtype="FLOAT")
        with pytest.raises(ValueError, match="expected samples within 1e"):
            spoken.read_audio(path, channels=2)


def mp3_frames(data):
    """(offset, bytes) of the frames of an MPEG-2 layer III file at 24 kHz."""
    rates = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0]
    at = 0
    while at + 4 <= len(data):
        size = 72_000 * rates[data[at + 2] >> 4] // 24_000 + ((data[at + 2] >> 1) & 1)
        yield at, size
        at += size


def bursts(seconds, rate):
    """Tones with silence between, whose frames have very different sizes."""
    on = np.sin(2 * np.pi * 0.7 * np.arange(round(seconds * rate)) / rate) > 0
    return tones(seconds, rate) * on


def id3v2(size):
    return b"ID3\x03\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(size)


@pytest.mark.parametrize("before", [b"", id3v2(700)])
@pytest.mark.parametrize("after", [b"", b"TAG" + bytes(125)])
def test_an_mp3_without_a_count_is_decoded_to_its_end(tmp_path, before, after):
    options = {"bitrate_mode": "CONSTANT", "compression_level": 0.9}  # its frames hold no count
    constant = encoded(bursts(4, 44_100), 44_100, "MP3", **options)
    assert soundfile.info(io.BytesIO(constant)).frames == 179_395  # an estimate
    path = tmp_path / "a.mp3"
    path.write_bytes(before + constant + after)
    samples = spoken.read_audio(path, channels=2)
    assert samples.shape[1] == np.ceil(178_560 * 24_000 / 44_100)
    assert spoken.duration(path, channels=2) == 178_560 / 44_100
    variable = encoded(bursts(4, 24_000)[:1], 24_000, "MP3")
    frames = list(mp3_frames(variable))
    variable = variable[frames[1][0] :]  # without its Xing frame
    assert soundfile.info(io.BytesIO(variable)).frames < 24_000
    (found,) = spoken.read_audio(before + variable + after, channels=1)
    assert len(found) == 576 * (len(frames) - 1)
    with pytest.raises(ValueError, match="at most 2 s of audio"):
        spoken.read_audio(before + variable + after, channels=1, max_seconds=2.0)


def test_audio_from_a_pipe_is_decoded_to_its_end(tmp_path):
    """Who writes FLAC or WAV into a pipe cannot go back to write how long it is."""
    flac = bytearray(encoded(tones(4, 24_000), 24_000, "FLAC"))
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    path = tmp_path / "a.flac"
    path.write_bytes(flac)
    assert soundfile.info(path).frames > 10**18
    np.testing.assert_allclose(spoken.read_audio(path, channels=2), tones(4, 24_000), atol=1e-4)
    assert spoken.duration(path, channels=2) == 4.0
    with pytest.raises(ValueError, match="expected WAV, FLAC, OGG or MP3 audio"):
        spoken.read_audio(bytes(flac[:-5000]), channels=2)
    wav = encoded(tones(4, 24_000), 24_000)
    at = wav.index(b"data") + 4
    for size in (bytes(4), b"\xff" * 4):
        piped = wav[:4] + size + wav[8:at] + size + wav[at + 4 :]
        samples = spoken.read_audio(piped, channels=2)
        np.testing.assert_allclose(samples, tones(4, 24_000), atol=1e-4)


def test_an_mp3_with_a_count_is_held_to_it():
    whole = encoded(tones(2, 24_000), 24_000, "MP3")
    assert spoken.read_audio(whole, channels=2).shape == (2, 48_000)
    with pytest.raises(ValueError, match="promises 48000 samples"):
        spoken.read_audio(whole[:-900], channels=2)


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100])
def test_audio_is_resampled_with_scipys_own_filter(rate):
    samples = np.random.default_rng(0).standard_normal((2, 999)).astype(np.float32)
    want = signal.resample_poly(samples, types.SAMPLE_RATE, rate, axis=1)
    for _ in range(2):  # made, and kept
        np.testing.assert_array_equal(spoken.resample(samples, rate), want)
