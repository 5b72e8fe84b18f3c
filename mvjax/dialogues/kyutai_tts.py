"""Kyutai's text to speech through PyPI `moshi`, with word times from the frames that consume each word.

The model generates text and audio on one frame grid and consumes a word when it is about to say it, so these
steps give the word times. All lines of a dialogue are one batch.
Source: moshi/models/tts.py and moshi/run_tts.py (0.2.13), whose settings are the defaults here.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvjax.data.records import record
from mvjax.data.speech import spoken
from mvjax.dialogues import speech, tts

REPO = "kyutai/tts-1.6b-en_fr"
_GUIDANCE = 2.0  # classifier-free
_PADDING_BETWEEN = 1  # frames of padding forced after each word, for clearer articulation
_MOST_CODEBOOKS = 32
_LONGEST = 180.0  # seconds of an utterance


@dataclasses.dataclass(frozen=True)
class Kyutai:
    """Settings of Kyutai's model.

    A voice is one of hf://kyutai/tts-voices, or a local file: .safetensors of an embedding (.wav for models
    that continue a recording).
    """

    repo: str = REPO  # on the Hugging Face hub, or a folder with its files (config.json names them)
    assistant: str = "vctk/p228_023_enhanced.wav"
    users: tuple[str, ...] = tuple(
        f"vctk/p{n}_023_enhanced.wav" for n in (229, 254, 259, 315, 333, 339)
    )
    device: str | None = None  # for PyTorch; None: the GPU if there is one

    def speak(self, lines: Sequence[tts.TtsLine]) -> list[speech.SynthesizedSpeech]:
        """Synthesizes lines in one batch; the same seeds on the same device give the same audio.

        Raises:
          ModuleNotFoundError: without `moshi`.
          ValueError: if the model does not finish a line.
        """
        return synthesize(_load(self.repo, self.device), lines)


def synthesize(model: Any, lines: Sequence[tts.TtsLine]) -> list[speech.SynthesizedSpeech]:
    """Synthesizes lines with a `moshi.models.tts.TTSModel`."""
    import torch

    torch.manual_seed(lines[0].seed)
    rate = float(model.mimi.frame_rate)
    model.max_gen_length = int(_LONGEST * rate)
    entries = [model.prepare_script([s.text], padding_between=_PADDING_BETWEEN) for s in lines]
    result, skipped = _generate(model, entries, [line.voice for line in lines])
    with torch.no_grad(), model.mimi.streaming(len(lines)):
        frames = [model.mimi.decode(f[:, 1:]) for f in result.frames[model.delay_steps :]]
    sound = torch.cat(frames, dim=-1).clamp(-1, 1).float().cpu().numpy()
    said = []
    for n, line in enumerate(lines):
        end = result.end_steps[n]
        if end is None:
            raise ValueError(
                f"Kyutai TTS: expected {line.text!r} to end within {_LONGEST:g} s; shorten it"
            )
        steps = (skipped[n], end + model.final_padding)
        first, last = (round(step * model.mimi.sample_rate / rate) for step in steps)
        samples = spoken.resample(sound[n, :1, first:last], model.mimi.sample_rate)[0]
        said.append(speech.SynthesizedSpeech(samples, _spans(result, n, skipped[n], rate), ()))
    return said


def _generate(model: Any, entries: list, voices: Sequence[str]) -> tuple[Any, list[int]]:
    """Runs the model; returns its result and each line's number of prefix frames (the voice's recording)."""
    distilled = bool(model.valid_cfg_conditionings)
    model.cfg_coef = 1.0 if distilled else _GUIDANCE
    conditioned = _GUIDANCE if distilled else None
    paths = [Path(v if Path(v).is_file() else model.get_voice_path(v)) for v in voices]
    if model.multi_speaker:
        attributes = [model.make_condition_attributes([path], conditioned) for path in paths]
        prefixes = None
    else:
        attributes = [model.make_condition_attributes([], conditioned) for _ in paths]
        prefixes = [model.get_prefix(path) for path in paths]
    unguided = {"cfg_is_no_prefix": not distilled, "cfg_is_no_text": not distilled}
    result = model.generate(entries, attributes, prefixes=prefixes, **unguided)
    return result, [p.shape[-1] for p in prefixes] if prefixes else [0] * len(paths)


def _spans(result: Any, n: int, skipped: int, rate: float) -> tuple[record.Word, ...]:
    """A word lasts from the step that consumed it to the next word's; the last one to the end step."""
    taken = result.all_transcripts[n]
    edges = [(step - skipped) / rate for _, step in taken]
    edges.append((result.end_steps[n] - skipped) / rate)
    return tuple(record.Word(word, a, b) for (word, _), a, b in zip(taken, edges, edges[1:]))


@functools.cache
def _load(repo: str, device: str | None) -> Any:
    try:
        import torch
        from moshi.models import loaders
        from moshi.models import tts as moshi_tts
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Kyutai TTS needs PyTorch and the package `moshi` ({error}): docs/dialogues.md, 'Speak'"
        ) from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    info = _checkpoint(loaders, repo)
    codebooks = min(_MOST_CODEBOOKS, (info.lm_config or {}).get("n_q", _MOST_CODEBOOKS))
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return moshi_tts.TTSModel.from_checkpoint_info(info, n_q=codebooks, device=device, dtype=dtype)


def _checkpoint(loaders: Any, repo: str) -> Any:
    """Upstream's description of a model's files, on the hub or in a folder."""
    folder = Path(repo)
    if not folder.is_dir():
        return loaders.CheckpointInfo.from_hf_repo(repo)
    config = folder / "config.json"
    names = json.loads(config.read_text())
    return loaders.CheckpointInfo.from_hf_repo(
        repo,
        moshi_weights=folder / names.get("moshi_name", loaders.MOSHI_NAME),
        mimi_weights=folder / names.get("mimi_name", loaders.MIMI_NAME),
        tokenizer=folder / names.get("tokenizer_name", loaders.TEXT_TOKENIZER_NAME),
        config_path=config,
    )
