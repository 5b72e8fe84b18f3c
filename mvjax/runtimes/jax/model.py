"""The JAX model as a real-time runtime: one conversation a session, a frame at a time."""

from __future__ import annotations

import jax
import numpy as np

from mvjax import tree
from mvjax.config import schema
from mvjax.nn import model as model_lib
from mvjax.nn import xattn
from mvjax.runtimes import delays, interface
from mvjax.runtimes.jax import generate, session


class JaxModel:
    """As `interface.Model`.

    Args:
      config: of the run.
      params: the whole parameter tree.
    """

    def __init__(self, config: schema.ModelConfig, params: tree.Tree) -> None:
        self.config, self.params = config, jax.device_put(params)
        self._module = model_lib.VisionSpeech(config)

    @property
    def sizes(self) -> interface.Sizes:
        """As `interface.Model.sizes`."""
        c = self.config
        return interface.Sizes(
            delays=c.delays,
            codebooks_out=c.codebooks_out,
            text_vocab=c.text_vocab,
            audio_vocab=c.audio_vocab,
            image_size=c.siglip.image_size,
        )

    def encode_image(self, pixels: np.ndarray) -> xattn.KeysValues:
        """As `interface.Model.encode_image`."""
        self.sizes.check_pixels(pixels)
        return generate.image_kv(self._module, self.params, pixels)

    def session(
        self,
        image: xattn.KeysValues | None = None,
        *,
        text_sampling: interface.Sampling = interface.GREEDY,
        audio_sampling: interface.Sampling = interface.GREEDY,
        seed: int = 0,
        probes: bool = False,
    ) -> session.JaxSession:
        """As `interface.Model.session`."""
        stream = self.config.stream
        return session.JaxSession(
            self._module,
            self.params,
            delays.DelayBuffer(
                self.sizes,
                first_step_forcing=stream.first_step_forcing,
                user_early=stream.user_early,
            ),
            image=image,
            samplings=(text_sampling, audio_sampling),
            seed=seed,
            probes=probes,
        )
