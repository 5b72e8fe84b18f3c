import numpy as np
import pytest
import soundfile

from mvjax import types
from mvjax.data.speech import augment

OFF = {"p_gain": 0.0, "p_noise": 0.0, "p_echo": 0.0}
RATE = types.SAMPLE_RATE


def talk(seconds: float = 2.0) -> np.ndarray:
    """Tones: the assistant in the first half, the user in the second."""
    t = np.arange(round(seconds * RATE)) / RATE
    first = t < seconds / 2
    sides = [np.sin(2 * np.pi * 300 * t) * first, np.sin(2 * np.pi * 500 * t) * ~first]
    return (0.1 * np.stack(sides)).astype(np.float32)


def changed(n: int = 0, **fields) -> np.ndarray:
    out = augment.Augmenter(augment.Augment(**{**OFF, **fields}))(talk(), id=f"x{n}", copy=0)
    assert out.shape == talk().shape and out.dtype == np.float32 and np.abs(out).max() <= 1
    np.testing.assert_array_equal(out[0], talk()[0])
    return out[1]


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def test_nothing_happens_at_probability_zero():
    np.testing.assert_array_equal(changed(), talk()[1])


def test_gain_is_within_its_range():
    steps = [20 * np.log10(rms(changed(n, p_gain=1.0)) / rms(talk()[1])) for n in range(40)]
    assert -24 <= min(steps) < -15 and 5 < max(steps) <= 15


def test_noise_has_the_asked_level_in_its_stretches():
    heard = talk()[1][RATE + 100 :]
    noise = changed(p_noise=1.0, p_silence=0.0, noise_db=(-6.0, -6.0)) - talk()[1]
    assert 20 * np.log10(rms(noise) / rms(heard)) == pytest.approx(-6, abs=0.5)
    assert np.all(changed(p_noise=1.0, p_silence=1.0) == talk()[1])


def test_echo_comes_late_and_is_softer():
    quiet = changed(p_echo=1.0)[: RATE // 10 - 1]
    assert rms(quiet) < 1e-4  # nothing before 100 ms
    echo = changed(p_echo=1.0)[RATE // 2 + 2400 : RATE - 2400]
    assert 0 < rms(echo) < 0.25 * rms(talk()[0][:RATE])


def test_recordings_are_used(tmp_path):
    tone = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(8000) / 16000)
    soundfile.write(tmp_path / "hum.wav", tone, 16000)
    fields = {"p_noise": 1.0, "p_silence": 0.0, "noise_db": (0.0, 0.0), "noise": str(tmp_path)}
    noise = changed(**fields) - talk()[1]
    spectrum = np.abs(np.fft.rfft(noise))
    assert np.argmax(spectrum) * RATE / len(noise) == pytest.approx(1000, abs=5)
    with pytest.raises(FileNotFoundError, match="expected audio files"):
        augment.Augmenter(augment.Augment(noise=str(tmp_path / "none")))


def test_draws_depend_on_seed_id_and_copy_alone():
    make = augment.Augmenter(augment.Augment(p_gain=1.0))
    same = [make(talk(), id="a", copy=1) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    others = (make(talk(), id="b", copy=1), make(talk(), id="a", copy=2))
    other_seed = augment.Augmenter(augment.Augment(seed=1, p_gain=1.0))(talk(), id="a", copy=1)
    assert all(np.any(same[0] != other) for other in (*others, other_seed))


def test_a_silent_user_gets_no_noise():
    audio = talk() * np.array([[1], [0]], np.float32)
    make = augment.Augmenter(augment.Augment(**{**OFF, "p_noise": 1.0, "p_silence": 0.0}))
    np.testing.assert_array_equal(make(audio, id="x", copy=0), audio)


def test_a_damaged_recording_costs_no_dialogue(tmp_path, caplog):
    (tmp_path / "broken.wav").write_bytes(b"RIFF" + bytes(60))
    fields = {"p_noise": 1.0, "p_silence": 0.0, "noise_db": (0.0, 0.0), "noise": str(tmp_path)}
    noise = changed(**fields) - talk()[1]
    assert rms(noise) > 0
    assert "pink noise instead of a recording: " in caplog.text and "broken.wav" in caplog.text
