"""A conversation in PyTorch, one frame at a time."""

from __future__ import annotations

import numpy as np
import torch

from mvjax.runtimes import delays as delays_lib
from mvjax.runtimes import interface, sampling
from mvjax.runtimes.torch import backbone as backbone_lib
from mvjax.runtimes.torch import depformer as depformer_lib


class TorchSession:
    """As `interface.Session`; opened by `model.TorchModel.session`."""

    def __init__(
        self,
        backbone: backbone_lib.TorchBackbone,
        depformer: depformer_lib.TorchDepformer,
        delays: delays_lib.DelayBuffer,
        sampler: sampling.HostSampler,
        *,
        image: backbone_lib.KeysValues | None,
        probes: bool,
    ) -> None:
        self._backbone, self._depformer = backbone, depformer
        self._delays, self._sampler = delays, sampler
        self._image, self._probes = image, probes
        self._cache = backbone.empty_cache()

    def show(self, image: backbone_lib.KeysValues | None) -> None:
        """As `interface.Session.show`."""
        self._image = image

    def reset(self) -> None:
        """As `interface.Session.reset`; frames that the KV cache still holds are no longer seen."""
        self._delays.reset()
        self._sampler.reset()

    @torch.inference_mode()
    def step(
        self, user_codes: np.ndarray, *, text: int | None = None, audio: np.ndarray | None = None
    ) -> interface.Frame:
        """As `interface.Session.step`."""
        s = self._delays.step
        x, hidden, gates = self._backbone.embed(self._delays.column(user_codes)), [], []
        for i in range(self._backbone.layers):
            x, gate = self._backbone.layer(i, x, s=s, cache=self._cache, image=self._image)
            if self._probes or i >= self._backbone.layers - interface.REPORTED_LAYERS:
                gates.append(torch.zeros(()) if gate is None else gate.mean())
            if self._probes:
                hidden.append(x)
        z, text_logits = self._backbone.output(x)
        text_logits = text_logits.numpy()
        text = self._sampler.text(text_logits) if text is None else int(text)
        tokens, audio_logits = self._depformer.generate(
            z, text, self._delays.forced_audio(audio), self._sampler.audio
        )
        probes = None
        if self._probes:
            probes = interface.Probes(
                text_logits=text_logits,
                audio_logits=np.stack(audio_logits),
                gates=torch.stack(gates).numpy(),
                hidden=torch.stack(hidden).numpy(),
            )
        return interface.Frame(
            text_token=text,
            audio_codes=self._delays.push(text, tokens),
            audio_tokens=tokens,
            gate=float(torch.stack(gates[-interface.REPORTED_LAYERS :]).mean()),
            probes=probes,
        )
