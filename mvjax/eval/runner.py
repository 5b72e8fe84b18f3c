"""Asks a model the samples of a benchmark, in batches, and scores its answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mvjax import types
from mvjax.data import images as images_lib
from mvjax.eval import benchmarks, metrics
from mvjax.eval import model as eval_model

_LENGTH = (
    64  # frames; the lengths of spoken conversations are multiples of it, so that few are compiled
)


class SpokenConversation(NamedTuple):
    """A finished spoken conversation, frame by frame."""

    streams: eval_model.Streams  # of one row
    start: int  # the frame in which the scored question begins
    end: int  # the first frame after it


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Answers by mode, in the order of the samples."""

    samples: Sequence[benchmarks.Sample]
    answers: Mapping[str, list[metrics.ScoredAnswer]]
    spoken: Sequence[SpokenConversation] | None  # of mode "audio", if that was asked
    table: list[dict[str, Any]]  # rows as of `metrics.table`, with a column "chance"
    intervals: Mapping[str, tuple[float, float]]  # of the last row, by mode


def evaluate(
    model: eval_model.LoadedModel,
    benchmark: benchmarks.Benchmark,
    samples: Sequence[benchmarks.Sample],
    modes: Sequence[benchmarks.PromptMode],
) -> Evaluation:
    """Asks every sample in each mode, greedily, and scores the answers; raises as `benchmarks.shuffled`."""
    answers: dict[str, list[metrics.ScoredAnswer]] = {}
    spoken = None
    for mode in modes:
        if mode == "audio":
            spoken = _converse(model, benchmark.protocol, samples)
            texts = [_answer(model, benchmark.protocol, conversation) for conversation in spoken]
        else:
            texts = _answer_text(model, benchmark.protocol, samples, mode)
        answers[mode] = [
            metrics.ScoredAnswer(s.id, s.kind, s.prompt, text, benchmark.score(s, text))
            for s, text in zip(samples, texts, strict=True)
        ]
    summaries = {mode: benchmark.summary(given) for mode, given in answers.items()}
    intervals = {mode: summary.interval for mode, summary in summaries.items()}
    return Evaluation(samples, answers, spoken, _table(benchmark, answers, summaries), intervals)


def _answer_text(
    model: eval_model.LoadedModel,
    protocol: benchmarks.PromptProtocol,
    samples: Sequence[benchmarks.Sample],
    mode: benchmarks.PromptMode,
) -> list[str]:
    order = benchmarks.shuffled(samples) if mode == "shuffled" else range(len(samples))
    images = np.stack([_image(model, samples[i]) for i in order])
    prompts = [protocol.template.format(prompt=s.prompt) for s in samples]
    return model.answer_text(prompts, images, has_image=mode != "blind")


def _converse(
    model: eval_model.LoadedModel,
    protocol: benchmarks.PromptProtocol,
    samples: Sequence[benchmarks.Sample],
) -> list[SpokenConversation]:
    lead = math.ceil(protocol.lead_in * types.FRAME_RATE)
    tail = math.ceil(protocol.tail * types.FRAME_RATE)
    clips, spans = [], []
    for sample in samples:
        assert sample.speech is not None
        speech = sample.speech()
        start, end = lead, lead + -(-len(speech) // types.FRAME_SAMPLES)
        size = -(-(end + tail) // _LENGTH) * _LENGTH * types.FRAME_SAMPLES
        before = start * types.FRAME_SAMPLES
        clips.append(np.pad(speech, (before, size - before - len(speech))))
        spans.append((start, end))
    longest = max(map(len, clips))
    clips = [np.pad(clip, (0, longest - len(clip))) for clip in clips]
    images = np.stack([_image(model, sample) for sample in samples])
    streams = model.converse(np.stack(model.encode_audio(clips)), images)
    return [
        SpokenConversation(eval_model.Streams(*(s[i] for s in streams)), start, end)
        for i, (start, end) in enumerate(spans)
    ]


def _answer(
    model: eval_model.LoadedModel,
    protocol: benchmarks.PromptProtocol,
    conversation: SpokenConversation,
) -> str:
    first = conversation.start if protocol.answer_from == "question start" else conversation.end
    last = conversation.end + math.ceil(protocol.tail * types.FRAME_RATE)
    return model.decode_text(conversation.streams.text_ids[first:last])


def _image(model: eval_model.LoadedModel, sample: benchmarks.Sample) -> np.ndarray:
    assert sample.image is not None
    return images_lib.resize_square(sample.image(), model.config.model.siglip.image_size)


def _table(
    benchmark: benchmarks.Benchmark,
    answers: Mapping[str, Sequence[metrics.ScoredAnswer]],
    summaries: Mapping[str, metrics.Summary],
) -> list[dict[str, Any]]:
    *rows, total = metrics.table(answers, summaries)
    for row in rows:
        row |= {"chance": benchmark.chance(row["kind"])} | benchmark.columns(row["kind"])
    chances = [row["chance"] for row in rows]
    known = chances and None not in chances
    return [*rows, total | {"chance": float(np.mean(chances)) if known else None}]
