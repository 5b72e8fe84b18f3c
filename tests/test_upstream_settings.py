"""The table of runtimes: every row is a field, sets it, and differs somewhere; "ours" is the default."""

import dataclasses

import pytest
import toy

from mvjax.config import schema, upstream


def _read(model: schema.ModelConfig, path: str):
    part, field = path.split(".")
    return getattr(getattr(model, part), field)


def test_ours_is_the_default():
    assert upstream.imitate(schema.ModelConfig(), "ours") == schema.ModelConfig()


@pytest.mark.parametrize("runtime", upstream.RUNTIMES)
def test_every_setting_arrives_and_nothing_else_changes(runtime):
    values = upstream.settings(runtime)
    model = upstream.imitate(toy.MODEL, runtime)
    assert {path: _read(model, path) for path in values} == values
    assert upstream.imitate(model, "ours") == toy.MODEL


def test_no_row_is_the_same_everywhere_and_every_type_is_right():
    tables = [upstream.settings(runtime) for runtime in upstream.RUNTIMES]
    for path in tables[0]:
        values = [table[path] for table in tables]
        assert len(set(values)) > 1, path
        assert {type(v) for v in values} == {type(_read(toy.MODEL, path))}, path


def test_an_unknown_runtime_is_refused_by_name():
    with pytest.raises(ValueError, match=r"expected one of \['ours'.*got 'kyutai'"):
        upstream.imitate(toy.MODEL, "kyutai")


def test_the_window_counts_the_frame_itself_or_has_it_on_top():
    backbone = schema.BackboneConfig()
    assert backbone.window == 3000
    assert dataclasses.replace(backbone, context_has_self=False).window == 3001
