"""The table of runtimes: every row is a field, sets it, and differs somewhere; "ours" is the default."""

import dataclasses

import pytest
import small_model as small

from mvjax import config as config_lib
from mvjax import parity


def _read(model: config_lib.ModelConfig, path: str):
    part, field = path.split(".")
    return getattr(getattr(model, part), field)


def test_ours_is_the_default():
    assert parity.imitate(config_lib.ModelConfig(), "ours") == config_lib.ModelConfig()


@pytest.mark.parametrize("runtime", parity.RUNTIMES)
def test_every_setting_arrives_and_nothing_else_changes(runtime):
    values = parity.settings(runtime)
    model = parity.imitate(small.CONFIG, runtime)
    assert {path: _read(model, path) for path in values} == values
    assert parity.imitate(model, "ours") == small.CONFIG


def test_no_row_is_the_same_everywhere_and_every_type_is_right():
    tables = [parity.settings(runtime) for runtime in parity.RUNTIMES]
    for path in tables[0]:
        values = [table[path] for table in tables]
        assert len(set(values)) > 1, path
        assert {type(v) for v in values} == {type(_read(small.CONFIG, path))}, path


def test_an_unknown_runtime_is_refused_by_name():
    with pytest.raises(ValueError, match=r"expected one of \['ours'.*got 'kyutai'"):
        parity.imitate(small.CONFIG, "kyutai")


def test_the_window_counts_the_frame_itself_or_has_it_on_top():
    backbone = config_lib.BackboneConfig()
    assert backbone.window == 3000
    assert dataclasses.replace(backbone, context_has_self=False).window == 3001
