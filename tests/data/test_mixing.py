import collections

import pytest

from mvjax import run_folder
from mvjax.config import schema
from mvjax.data import mixing

ROWS = 4


def sources(**chosen: float) -> tuple[schema.Source, ...]:
    return tuple(schema.Source(name, float(weight)) for name, weight in chosen.items())


def segment(step: int, **chosen: float) -> mixing.Segment:
    return mixing.Segment(step, sources(**chosen), sources(**chosen))


class Numbers:
    """An endless dataset of (name, number of the element)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __len__(self) -> int:
        return mixing.ENDLESS

    def __getitem__(self, index: int):
        return self.name, index


def stream(history: mixing.History, steps: int) -> list[tuple[str, int]]:
    opened = {}

    def source(name, n):
        opened[name] = n
        return Numbers(name)

    mixed = mixing.mix(history, "speech", rows=ROWS, source=source, seed=0)
    return [mixed[i] for i in range(steps * ROWS)]


def test_weights_are_proportions():
    counts = collections.Counter(name for name, _ in stream((segment(0, a=3, b=1, c=0.5),), 90))
    assert counts == {"a": 240, "b": 80, "c": 40}


def test_every_source_goes_on_where_it_was():
    history = (segment(0, a=3, b=1), segment(7, a=1, b=1, c=2), segment(11, c=1, a=5))
    found = stream(history, 30)
    assert found[: 7 * ROWS] == stream(history[:1], 7)
    seen = collections.defaultdict(list)
    for name, index in found:
        seen[name].append(index)
    for name, indices in seen.items():
        assert indices == list(range(len(indices))), name
    late = collections.Counter(name for name, _ in found[11 * ROWS :])
    assert set(late) == {"a", "c"} and late["a"] > 4 * late["c"]
    middle = collections.Counter(name for name, _ in found[7 * ROWS : 11 * ROWS])
    assert middle == {"a": 4, "b": 4, "c": 8}


def test_the_history_is_kept_and_forgets_what_is_trained_anew(tmp_path):
    path = tmp_path / run_folder.MIXTURE
    data = schema.DataConfig(speech=sources(a=3), speechless=sources(b=1))
    history, notice = mixing.resume(path, data, 0)
    assert (history, notice) == (mixing.start(data), "")
    mixing.write(path, history)
    assert mixing.resume(path, data, 40) == (history, "")
    other = schema.DataConfig(speech=sources(a=1, c=2), speechless=sources(b=1))
    changed, notice = mixing.resume(path, other, 40)
    assert changed == (*history, mixing.Segment(40, other.speech, other.speechless))
    assert notice == "weights change at step 40: speech a 3 -> a 1, c 2"
    mixing.write(path, changed)
    assert mixing.resume(path, other, 60) == (changed, "")
    assert mixing.resume(path, data, 30) == (history, "")  # back to before the change
    assert len(mixing.resume(path, data, 60)[0]) == 3


def test_a_damaged_history_is_an_error(tmp_path):
    path = tmp_path / run_folder.MIXTURE
    path.write_text("[")
    with pytest.raises(ValueError, match="expected a history of weights"):
        mixing.resume(path, schema.DataConfig(), 5)
    path.write_text("[]")
    with pytest.raises(ValueError, match="from step 0 on"):
        mixing.resume(path, schema.DataConfig(), 5)


def test_a_history_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "mixture.json"
    path.write_bytes(b'[{"step": 0, "speech": [{"name": "\xff"}], "speechless": []}]')
    with pytest.raises(ValueError, match=r"mixture\.json: expected a history of weights"):
        mixing.resume(path, schema.DataConfig(), 5)
