"""The JAX runtime's programs: what happens to a conversation of a batch compiles none."""

import exported
import jax
import numpy as np

from mvjax.runtimes import interface
from mvjax.runtimes.jax import model as jax_model


def test_whatever_happens_to_conversations_compiles_nothing(caplog):
    """They join, leave, wait, reset, change images, sampling and what is forced; `warm_up` has it all."""

    def compiled():
        names = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]
        caplog.clear()
        return names

    model = jax_model.JaxModel(exported.TOY, exported.random_params())
    pixels, user = exported.inputs(9)
    slots = model.slots(2)
    with jax.log_compiles():
        slots.warm_up()
        assert sum("_step" in name for name in compiled()) == 1
        first = slots.join(model.encode_image(pixels), seed=1)
        say = {first: interface.Turn(user[:, 0])}
        slots.step(say)
        how = interface.Sampling(0.9, 5, 1.3, 4, 0.5), interface.Sampling(0.7, 3)
        other = slots.join(text_sampling=how[0], audio_sampling=how[1], seed=2)
        say[other] = interface.Turn(user[:, 1], text=4, audio=np.array([1, -2, 3]))
        slots.step(say)
        slots.show(other, model.encode_image(-pixels))
        slots.show(first, None)
        slots.resample(first, text_sampling=how[0], audio_sampling=interface.GREEDY)
        slots.step(say)
        slots.reset(first)
        slots.leave(other)
        for codes in user.T:  # past the context
            slots.step({first: interface.Turn(codes)})
        assert slots.join() == other
        slots.step(say)
        assert compiled() == []
