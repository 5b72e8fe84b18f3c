import subprocess
import sys

import jax
import pytest

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


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's malloc alone")
@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_kept_for_the_next_block(kept):
    lines = [
        "import resource, numpy as np",
        "from mvjax.train import memory",
        "memory.keep_freed()" if kept else "",
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt",
        "np.ones(10_000_000)",
        "before = faults()",
        "np.ones(10_000_000)",
        "print(faults() - before)",
    ]
    run = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, check=True)
    assert (int(run.stdout) < 20) == kept  # of 19,500 pages, or 39 huge ones
