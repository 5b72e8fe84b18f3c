import jax

from mvjax.train import memory


def test_peaks_are_in_units_of_1e9_bytes(monkeypatch):
    assert 0.05 < memory.host_peak_gb() < 100
    assert memory.device_peak_gb() is None  # a CPU does not report it

    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak * 10**9}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(3), Device(5)])
    assert memory.device_peak_gb() == 5.0
    usage = type("Usage", (), {"ru_maxrss": 10**6})
    monkeypatch.setattr(memory.resource, "getrusage", lambda _: usage)
    monkeypatch.setattr(memory.sys, "platform", "linux")
    assert memory.host_peak_gb() == 1.024
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.host_peak_gb() == 0.001
