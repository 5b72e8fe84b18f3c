"""A conversation with the JAX model, one frame at a time: one compiled step, one transfer to the host."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Key

from mvjax import tree, types
from mvjax.nn import attention, xattn
from mvjax.nn import model as model_lib
from mvjax.runtimes import delays as delays_lib
from mvjax.runtimes import interface
from mvjax.runtimes.jax import step as step_lib


class JaxSession:
    """As `interface.Session`; opened by `model.JaxModel.session`.

    With an image and without are two programs, each compiled at its first frame.
    """

    def __init__(
        self,
        module: model_lib.VisionSpeech,
        params: tree.Tree,
        delays: delays_lib.DelayBuffer,
        *,
        image: xattn.KeysValues | None,
        samplings: step_lib.SamplingPair,
        seed: int,
        probes: bool,
    ) -> None:
        self._module, self._params, self._delays = module, params, delays
        self._image, self._samplings, self._probes = image, samplings, probes
        self._key = jax.random.key(seed)
        self._cache = module.init_cache(1)

    def show(self, image: xattn.KeysValues | None) -> None:
        """As `interface.Session.show`."""
        self._image = image

    def reset(self) -> None:
        """As `interface.Session.reset`."""
        self._delays.reset()
        self._cache = self._module.init_cache(1)

    def step(
        self, user_codes: np.ndarray, *, text: int | None = None, audio: np.ndarray | None = None
    ) -> interface.Frame:
        """As `interface.Session.step`."""
        column = self._delays.column(user_codes)
        self._cache, out = _step(
            self._module,
            self._params,
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
