"""A conversation many times longer than the context keeps its memory; `tools/long_session.py` times one."""

import runpy
from pathlib import Path

import exported
import numpy as np
import pytest

TOOL = Path(__file__).parents[2] / "tools" / "long_session.py"


@pytest.mark.long
def test_memory_is_flat_to_a_percent(tmp_path, capsys):
    pytest.importorskip("torch")
    _, folder = exported.write(exported.TOY, "torch", tmp_path)
    measure = runpy.run_path(str(TOOL))["measure"]
    _, memory = np.array(list(measure(folder, 4, codec=False))).T  # 3,000 frames, context 5
    assert len(capsys.readouterr().out.splitlines()) == 1 + 4
    assert abs(memory[-1] / memory[1] - 1) < 0.01, memory
