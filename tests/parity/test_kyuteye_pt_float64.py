"""What is left between kyuteye_pt and us is rounding: in float64 it is gone, whatever the weights' scale."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import upstream

pytestmark = pytest.mark.parity

HERE = Path(__file__).parent


def test_streaming_steps_in_float64(tmp_path, compare):
    upstream.checkout(upstream.MOSHIVIS)
    pytest.importorskip("torch")
    paths = [HERE.parents[1], HERE.parent, HERE, os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, HERE / "in_float64.py", tmp_path / "logits.npz"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "logits.npz")
    for name in ("text_logits", "audio_logits"):
        compare(name, found[f"ours {name}"], found[f"theirs {name}"], 1e-10)
