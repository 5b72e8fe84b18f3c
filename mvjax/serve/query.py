"""Parameters of a connection: sampling, seeds, image; each bounded, none required, unknown ones ignored.

Names and meanings are upstream's (reference section 5.5). Its client always sends worker_auth_id, email and
text_temperature_gating_influence, too, which count for nothing here.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any, Literal

from mvjax import messages
from mvjax.config import talking
from mvjax.runtimes import interface
from mvjax.serve import limits as limits_lib

_KYUTAI = talking.TalkConfig()
_SEED_BITS = 53  # what JavaScript's numbers hold
SAMPLING: dict[str, tuple[type, float, float, float]] = {  # type, least, most, default
    "text_temperature": (float, 0, 10, _KYUTAI.text_temperature),
    "text_topk": (int, 0, interface.MAX_TOP_K, _KYUTAI.text_top_k),
    "audio_temperature": (float, 0, 10, _KYUTAI.audio_temperature),
    "audio_topk": (int, 0, interface.MAX_TOP_K, _KYUTAI.audio_top_k),
    "pad_mult": (float, -20, 20, 0.0),
    "repetition_penalty": (float, 0.1, 10, 1.0),
    "repetition_penalty_context": (int, 0, interface.MAX_PENALTY_CONTEXT, 0),
}
_OTHERS: dict[str, tuple[type, float, float]] = {
    "text_seed": (int, 0, 2**_SEED_BITS),
    "audio_seed": (int, 0, 2**_SEED_BITS),
    "xa_start": (int, 0, 10_000),  # the first frame that sees the image
    "image_resolution": (int, 16, 4096),
    "max_steps": (int, 1, 10**9),
}


@dataclasses.dataclass(frozen=True)
class Query:
    """What a client asks for when it connects.

    Attributes:
      sampling: a value for each of SAMPLING.
      seed: of the conversation, made of upstream's two; None: drawn.
      xa_start: frames of the conversation before the image is seen; None: the server's default.
      image_resolution: pixels, the most detail of an image that is kept.
      center_crop: cut an image to a square in its middle; else it is squashed.
      max_steps: frames after which the conversation ends.
      audio: Ogg Opus, or int16 PCM.
      resume: token of a lost conversation.
    """

    sampling: dict[str, float]
    seed: int | None
    xa_start: int | None
    image_resolution: int
    center_crop: bool
    max_steps: int
    audio: Literal["opus", "pcm"]
    resume: str | None

    def drawn_seed(self) -> int:
        """Returns the seed, drawn if none was given."""
        return secrets.randbits(_SEED_BITS) if self.seed is None else self.seed


def parse(values: Mapping[str, str], talk: talking.TalkConfig = _KYUTAI) -> Query:
    """Returns the parameters of a query string; what says nothing of sampling gets that of `talk`.

    Raises:
      limits.BrokenLimit: naming all that are out of range.
    """
    wrong: list[str] = []
    sampling = _numbers(values, SAMPLING, wrong)
    usual = {
        "text_temperature": talk.text_temperature,
        "text_topk": talk.text_top_k,
        "audio_temperature": talk.audio_temperature,
        "audio_topk": talk.audio_top_k,
    }
    others = _numbers(values, _OTHERS, wrong)
    audio, crop = values.get("audio", "opus"), values.get("center_crop", "false").lower()
    if audio not in ("opus", "pcm"):
        wrong.append(f"audio={audio:.20} (opus or pcm)")
    if crop not in ("true", "false", "1", "0"):
        wrong.append(f"center_crop={crop:.20} (true or false)")
    if wrong:
        raise limits_lib.BrokenLimit(f"query: out of range: {', '.join(wrong)}")
    seeds = [others[name] for name in ("text_seed", "audio_seed") if name in others]
    return Query(
        sampling={**{name: known[3] for name, known in SAMPLING.items()}, **usual, **sampling},
        seed=int(seeds[0] << _SEED_BITS | seeds[-1]) if seeds else None,
        xa_start=others.get("xa_start"),
        image_resolution=others.get("image_resolution", 4096),
        center_crop=crop in ("true", "1"),
        max_steps=others.get("max_steps", 10**9),
        audio="pcm" if audio == "pcm" else "opus",
        resume=values.get("resume"),
    )


def changed(values: Mapping[str, str]) -> dict[str, float]:
    """Returns the settings that a client changes.

    Raises:
      limits.BrokenLimit: for unknown names, and values out of range.
    """
    wrong = [f"{n:.40} ({messages.did_you_mean(n, SAMPLING)})" for n in values if n not in SAMPLING]
    numbers = _numbers(values, SAMPLING, wrong)
    if wrong:
        raise limits_lib.BrokenLimit(f"settings: out of range: {', '.join(wrong)}")
    return numbers


def text_sampling(sampling: Mapping[str, float]) -> interface.Sampling:
    """Returns the settings of the text stream."""
    return interface.Sampling(
        temperature=sampling["text_temperature"],
        top_k=int(sampling["text_topk"]),
        repetition_penalty=sampling["repetition_penalty"],
        repetition_penalty_context=int(sampling["repetition_penalty_context"]),
        pad_multiplier=sampling["pad_mult"],
    )


def audio_sampling(sampling: Mapping[str, float]) -> interface.Sampling:
    """Returns the settings of the audio streams."""
    return interface.Sampling(
        temperature=sampling["audio_temperature"], top_k=int(sampling["audio_topk"])
    )


def _numbers(
    values: Mapping[str, str], known: Mapping[str, tuple[Any, ...]], wrong: list[str]
) -> dict[str, Any]:
    """Reads the numbers that are there; appends to `wrong` what cannot be."""
    read: dict[str, Any] = {}
    for name, (kind, least, most, *_) in known.items():
        text = values.get(name)
        if text is None:
            continue
        try:
            value = kind(text[:40])
            if not least <= value <= most:
                raise ValueError
        except ValueError:
            wrong.append(f"{name}={text:.40} ({kind.__name__}, {least:g} to {most:g})")
        else:
            read[name] = value
    return read
