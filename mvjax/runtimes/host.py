"""What the PyTorch and MLX runtimes share: a framework computes, and numpy delays and samples on the host."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from mvjax import types
from mvjax.runtimes import delays, interface, network, sampling


class HostModel(network.Network):
    """As `interface.Model`."""

    inference: Any = contextlib.nullcontext  # makes the context that the framework computes in

    @property
    def sizes(self) -> interface.Sizes:
        """As `interface.Model.sizes`."""
        return self.config.sizes

    def encode_image(self, pixels: np.ndarray) -> network.KeysValues:
        """As `interface.Model.encode_image`."""
        self.sizes.check_pixels(pixels)
        with self.inference():
            return self.keys_values(pixels)

    def session(
        self,
        image: network.KeysValues | None = None,
        *,
        text_sampling: interface.Sampling = interface.GREEDY,
        audio_sampling: interface.Sampling = interface.GREEDY,
        seed: int = 0,
        probes: bool = False,
    ) -> HostSession:
        """As `interface.Model.session`."""
        sampler = sampling.HostSampler(text_sampling, audio_sampling, seed=seed)
        return HostSession(self, sampler, image=image, probes=probes)


class HostSession:
    """As `interface.Session`."""

    def __init__(
        self,
        model: HostModel,
        sampler: sampling.HostSampler,
        *,
        image: network.KeysValues | None,
        probes: bool,
    ) -> None:
        self._model, self._sampler, self._image, self._probes = model, sampler, image, probes
        self._delays = delays.DelayBuffer(model.sizes)
        self._cache = model.empty_cache()

    def show(self, image: network.KeysValues | None) -> None:
        """As `interface.Session.show`."""
        self._image = image

    def reset(self) -> None:
        """As `interface.Session.reset`."""
        self._delays.reset()
        self._sampler.reset()
        self._cache = self._model.empty_cache()

    def step(
        self, user_codes: np.ndarray, *, text: int | None = None, audio: np.ndarray | None = None
    ) -> interface.Frame:
        """As `interface.Session.step`."""
        model, s = self._model, self._delays.step
        column = self._delays.column(user_codes)
        with model.inference():
            out = model.frame(
                column, s=s, cache=self._cache, image=self._image, probes=self._probes
            )
            text = self._sampler.text(out.text_logits) if text is None else int(text)
            tokens, audio_logits = model.generate(
                out.z, text, self._delays.forced_audio(audio), self._sampler.audio
            )
        probes = None
        if out.hidden is not None:
            probes = interface.Probes(out.text_logits, audio_logits, out.gates, out.hidden)
        return interface.Frame(
            text_token=text,
            audio_codes=self._delays.push(text, tokens),
            audio_tokens=tokens,
            gate=float(out.gates[-types.REPORTED_LAYERS :].mean()),
            probes=probes,
        )
