"""The JAX model as a real-time runtime: one conversation a session, a frame at a time.

A frame is one compiled step and one transfer to the host.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from mvjax import tree, types
from mvjax.config import schema
from mvjax.nn import attention, xattn
from mvjax.nn import model as model_lib
from mvjax.runtimes import delays, interface
from mvjax.runtimes.jax import generate
from mvjax.runtimes.jax import step as step_lib


class JaxModel:
    """As `interface.Model`."""

    def __init__(self, config: schema.ModelConfig, params: tree.Tree) -> None:
        self.config, self.params = config, jax.device_put(params)
        self.module = model_lib.VisionSpeech(config)

    @property
    def sizes(self) -> interface.Sizes:
        """As `interface.Model.sizes`."""
        c = self.config
        return interface.Sizes(
            c.delays, c.codebooks_out, c.text_vocab, c.audio_vocab, c.siglip.image_size
        )

    def encode_image(self, pixels: np.ndarray) -> xattn.KeysValues:
        """As `interface.Model.encode_image`."""
        self.sizes.check_pixels(pixels)
        return generate.image_kv(self.module, self.params, pixels)

    def session(
        self,
        image: xattn.KeysValues | None = None,
        *,
        text_sampling: interface.Sampling = interface.GREEDY,
        audio_sampling: interface.Sampling = interface.GREEDY,
        seed: int = 0,
        probes: bool = False,
    ) -> JaxSession:
        """As `interface.Model.session`."""
        samplings = (text_sampling, audio_sampling)
        return JaxSession(self, image=image, samplings=samplings, seed=seed, probes=probes)


class JaxSession:
    """As `interface.Session`.

    With an image and without are two programs, each compiled at its first frame.
    """

    def __init__(
        self,
        model: JaxModel,
        *,
        image: xattn.KeysValues | None,
        samplings: step_lib.SamplingPair,
        seed: int,
        probes: bool,
    ) -> None:
        self._model, self._image, self._samplings, self._probes = model, image, samplings, probes
        self._key = jax.random.key(seed)
        stream = model.config.stream
        self._delays = delays.DelayBuffer(
            model.sizes,
            first_step_forcing=stream.first_step_forcing,
            user_early=stream.user_early,
        )
        self._cache = model.module.init_cache(1)

    def show(self, image: xattn.KeysValues | None) -> None:
        """As `interface.Session.show`."""
        self._image = image

    def reset(self) -> None:
        """As `interface.Session.reset`."""
        self._delays.reset()
        self._cache = self._model.module.init_cache(1)

    def step(
        self, user_codes: np.ndarray, *, text: int | None = None, audio: np.ndarray | None = None
    ) -> interface.Frame:
        """As `interface.Session.step`."""
        column = self._delays.column(user_codes)
        self._cache, out = _step(
            self._model.module,
            self._model.params,
            self._cache,
            np.asarray(column, np.int32),
            np.int32(types.UNGENERATED if text is None else text),
            np.asarray(self._delays.forced_audio(audio), np.int32),
            self._image,
            self._key,
            samplings=self._samplings,
            probes=self._probes,
        )
        token, tokens, gate, probes = jax.device_get(out)
        return interface.Frame(
            text_token=int(token),
            audio_codes=self._delays.push(int(token), tokens),
            audio_tokens=tokens,
            gate=float(gate),
            probes=None if probes is None else interface.Probes(**probes),
        )


@functools.partial(
    jax.jit, static_argnames=("module", "samplings", "probes"), donate_argnames="cache"
)
def _step(
    module: model_lib.VisionSpeech,
    params: tree.Tree,
    cache: attention.Cache,
    column: Int[Array, "K"],
    forced_text: Int[Array, ""],
    forced_audio: Int[Array, "Q"],
    image: xattn.KeysValues | None,
    key: Key[Array, ""],
    *,
    samplings: step_lib.SamplingPair,
    probes: bool,
) -> tuple[attention.Cache, tuple[Any, ...]]:
    """Runs one frame of one conversation; the KV cache is written in place.

    Returns:
      The KV cache, and for the host: text token, audio codes, gate activation, the fields of
      `interface.Probes` or None.
    """
    out = step_lib.step(
        module,
        params,
        cache,
        column[None],
        forced_text=forced_text[None],
        forced_audio=forced_audio[None],
        kv=image,
        has_image=None,
        key=jax.random.fold_in(key, cache.position),
        samplings=samplings,
        probes=probes,
    )
    fields = None
    if out.layers is not None:
        fields = {
            "text_logits": out.text_logits[0],
            "audio_logits": out.audio_logits[0],
            "gates": out.layers.gates[:, 0, 0],
            "hidden": out.layers.hidden[:, 0, 0],
        }
    return out.cache, (out.text[0], out.audio[0], out.gate[0], fields)
