"""What the PyTorch and MLX runtimes share: a framework computes, and numpy delays and samples on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from mvjax import types
from mvjax.runtimes import delays, interface, sampling


class BackboneFrame(NamedTuple):
    """What a framework's backbone computed for one frame.

    Attributes:
      z: for the depth transformer; an array of the framework.
      text_logits: [V].
      gates: gate activation of each layer with probes, else of the last ten.
      hidden: [L, D] with probes, else None.
    """

    z: Any
    text_logits: np.ndarray
    gates: np.ndarray
    hidden: np.ndarray | None


@runtime_checkable
class HostBackbone(Protocol):
    """The temporal transformer in a framework."""

    def empty_cache(self) -> Any:
        """Returns the KV cache before the first frame."""
        ...

    def frame(
        self, column: Int[np.ndarray, "K"], *, s: int, cache: Any, image: Any, probes: bool
    ) -> BackboneFrame:
        """Runs frame s, and writes it into the KV cache.

        Args:
          column: delayed ids; -1 adds no embedding.
          s: position.
          cache: with the frames before.
          image: keys and values, or None.
          probes: keep every layer's gate activation and residual stream.
        """
        ...


@runtime_checkable
class HostDepformer(Protocol):
    """The depth transformer in a framework."""

    def generate(
        self,
        z: Any,
        text: int,
        forced: Int[np.ndarray, "Q"],
        sample: Callable[[np.ndarray], int],
    ) -> tuple[Int[np.ndarray, "Q"], Float[np.ndarray, "Q C"]]:
        """Returns (codes, logits) of one frame, one codebook after the other.

        Args:
          z: of the backbone.
          text: token of the frame.
          forced: codes to take in place of sampled ones; UNGENERATED leaves the choice.
          sample: returns a code from logits [C].
        """
        ...


class HostModel:
    """An `interface.Model` short of `encode_image`.

    Args:
      sizes: of the model.
      backbone: with its weights.
      depformer: with its weights.
    """

    def __init__(
        self, sizes: interface.Sizes, backbone: HostBackbone, depformer: HostDepformer
    ) -> None:
        self.sizes, self._backbone, self._depformer = sizes, backbone, depformer

    def session(
        self,
        image: Any | None = None,
        *,
        text_sampling: interface.Sampling = interface.GREEDY,
        audio_sampling: interface.Sampling = interface.GREEDY,
        seed: int = 0,
        probes: bool = False,
    ) -> HostSession:
        """As `interface.Model.session`."""
        return HostSession(
            self._backbone,
            self._depformer,
            delays.DelayBuffer(self.sizes),
            sampling.HostSampler(text_sampling, audio_sampling, seed=seed),
            image=image,
            probes=probes,
        )


class HostSession:
    """As `interface.Session`."""

    def __init__(
        self,
        backbone: HostBackbone,
        depformer: HostDepformer,
        buffer: delays.DelayBuffer,
        sampler: sampling.HostSampler,
        *,
        image: Any | None,
        probes: bool,
    ) -> None:
        self._backbone, self._depformer = backbone, depformer
        self._delays, self._sampler = buffer, sampler
        self._image, self._probes = image, probes
        self._cache = backbone.empty_cache()

    def show(self, image: Any | None) -> None:
        """As `interface.Session.show`."""
        self._image = image

    def reset(self) -> None:
        """As `interface.Session.reset`."""
        self._delays.reset()
        self._sampler.reset()
        self._cache = self._backbone.empty_cache()

    def step(
        self, user_codes: np.ndarray, *, text: int | None = None, audio: np.ndarray | None = None
    ) -> interface.Frame:
        """As `interface.Session.step`."""
        s = self._delays.step
        column = self._delays.column(user_codes)
        out = self._backbone.frame(
            column, s=s, cache=self._cache, image=self._image, probes=self._probes
        )
        text = self._sampler.text(out.text_logits) if text is None else int(text)
        tokens, audio_logits = self._depformer.generate(
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
