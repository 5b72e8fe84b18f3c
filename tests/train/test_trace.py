import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from mvjax.train import trace


def test_parse():
    assert trace.parse("3:5") == (3, 5)


@pytest.mark.parametrize("text", ["", "5", "5:3", "0:3", "3:5:7", "a:b"])
def test_a_bad_span(text):
    with pytest.raises(ValueError, match=f"--profile {text}: expected A:B"):
        trace.parse(text)


def steps_traced(folder) -> list[int]:
    (path,) = folder.rglob("*.trace.json.gz")
    assert path.with_name(path.name.replace(".trace.json.gz", ".xplane.pb")).stat().st_size > 1000
    named = [
        e for e in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"] if "name" in e
    ]
    return sorted(int(e["args"]["step_num"]) for e in named if e["name"] == trace.STEP_NAME)


@pytest.mark.parametrize(("span", "first", "expected"), [((3, 4), 1, [3, 4]), ((2, 9), 4, [4, 5])])
def test_the_steps_of_a_span_are_in_the_files(tmp_path, span, first, expected):
    said = []
    step = jax.jit(lambda x: x @ x)
    with trace.StepTracer(tmp_path, trace.Span(*span), say=said.append) as tracer:
        for number in range(first, 6):
            with tracer.step(number):
                y = step(jnp.ones((8, 8)))
            tracer.after(number, {"y": y})
    assert steps_traced(tmp_path / "profile" / "0") == expected
    assert said == [f"trace of steps {expected[0]} to {expected[-1]}: {tmp_path}/profile/0"]


def test_no_span_no_files(tmp_path):
    with trace.StepTracer(tmp_path, None, say=print) as tracer, tracer.step(1):
        pass
    assert list(tmp_path.iterdir()) == []
