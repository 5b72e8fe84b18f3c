"""A run without a model, in which no step is compiled, and a folder where the step of the toy is kept."""

import jax
import pytest


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """For `toy.compilation_cache`: the tests of the step and those of the loop compile the same program."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def quick(monkeypatch):
    """A run without a model: one parameter, and steps that skip the batches of `skip`, counted from 1."""
    # Inside, because mvjax must not be imported before its annotations are instrumented.
    from mvjax.train import load
    from mvjax.train import step as step_lib

    skip = set()

    def weights(run, mesh, files):
        return load.ModelParams({"scale": jax.numpy.ones(3)}, {})

    def make(run, mesh, *, adapters, frozen):
        def train_step(state, frozen, batch):
            bad = int(state.step) + 1 in skip
            state = state._replace(step=state.step + 1, skipped=state.skipped + bad)
            loss = jax.numpy.float32(float("nan") if bad else 2.5)
            return state, {"loss": loss, "skipped": state.skipped}

        return train_step

    monkeypatch.setattr(load, "weights", weights)
    monkeypatch.setattr(load, "frozen", lambda run, mesh, files: {})
    monkeypatch.setattr(
        load, "shapes", lambda run: jax.eval_shape(lambda: weights(run, None, None))
    )
    monkeypatch.setattr(step_lib, "make", make)
    return skip
