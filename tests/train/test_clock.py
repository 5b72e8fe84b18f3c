import math

import jax

from mvjax.train import clock


def test_seconds_a_step_by_part(monkeypatch):
    now = 100.0
    monkeypatch.setattr(clock.time, "monotonic", lambda: now)
    times = clock.Clock()

    def step(data, devices, checkpoint):
        nonlocal now
        for part, seconds in (("data", data), ("checkpoint", checkpoint)):
            with times.spent(part):
                now += seconds
        now += devices
        times.tick()

    assert math.isnan(times.seconds_per_step)
    step(1.0, 60.0, 0.0)  # mostly compilation
    assert times.seconds == {}
    step(0.5, 2.0, 0.0)
    step(0.25, 4.0, 1.0)
    assert times.seconds == {"data": 0.375, "step": 3.0, "checkpoint": 0.5}
    assert times.seconds_per_step == 3.875


def test_memory(monkeypatch):
    assert 0.05 < clock.host_memory_gb() < 100
    assert clock.device_memory_gb() is None  # a CPU does not tell

    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak * 2**30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(3), Device(5)])
    assert clock.device_memory_gb() == 5.0
