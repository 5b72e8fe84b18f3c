"""Composes the quickstart's report: the numbers, plots, images and sounds that go on the page."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import mvjax
from mvjax import run_folder
from mvjax.digits import stages
from mvjax.eval import benchmarks, metrics, switching
from mvjax.export import verdict
from mvjax.report import html, plots
from mvjax.train import load

# Targets: accuracy on held-out questions, time from start to report, peak memory.
TARGET_ACCURACY = {"text": 0.90, "audio": 0.75}
TARGET_SECONDS, TARGET_GB = 360.0, 6.0
RUNTIMES = {"torch": "PyTorch", "mlx": "MLX"}

_SPEAKERS = {  # of `voice_check.SIDES`
    "synthesizer": "Synthesizer",
    "codec": "Through the codec",
    "model": "The model's answer",
}
_CURVES = {  # of metrics.jsonl
    "loss": "total",
    "text_speech": "text of spoken talk",
    "text_speechless": "text of written talk",
    "audio_speech": "speech codes",
}


def compose(results: stages.QuickstartResults, timed: Sequence[html.Stage]) -> html.Report:
    """Returns the page; the last of `timed` is the whole run."""
    now = datetime.datetime.now(datetime.UTC)
    table = results.evaluation.table
    return html.Report(
        title=_title(results),
        subtitle=f"mvjax quickstart on {_machine()}, {now:%d %B %Y}",
        tiles=_tiles(results, timed[-1]),
        examples=[
            dataclasses.replace(kind, name=_name(kind.name)) for kind in results.speech.examples
        ],
        accuracy=_accuracy(table),
        gate=_gate(results.speech.trace),
        trained=_trained(results),
        loss=_loss(results),
        certificates=_certificates(results),
        codec=_codec(results.speech),
        voices=[
            html.SaidSentence(
                said.text, {_SPEAKERS[side]: samples for side, (samples, _) in said.said.items()}
            )
            for said in results.speech.sentences
        ],
        stages=timed,
        continued=results.plan.continued,
        footer=f"mvjax {mvjax.__version__}, jax {jax.__version__}, "
        f"Python {platform.python_version()}. This page needs no network.",
    )


def _title(results: stages.QuickstartResults) -> str:
    """Claims that the model learned only where its accuracies say so."""
    mean = results.evaluation.table[-1]
    if results.plan.short:
        return "A short run: it shows that everything works, not that the model learns"
    if all(mean[mode] >= target for mode, target in TARGET_ACCURACY.items()):
        return "A small voice model learned to see digits"
    return "A small voice model, short of its targets in seeing digits"


def _tiles(results: stages.QuickstartResults, whole: html.Stage) -> list[html.Tile]:
    """Headline numbers; a short run is not judged, nor is the time of a part of one."""
    mean = results.evaluation.table[-1]
    tiles = []
    for mode, name in (("text", "written questions"), ("audio", "spoken questions, new voices")):
        low, high = results.evaluation.intervals[mode]
        accuracy, target = mean[mode], TARGET_ACCURACY[mode]
        goal = f"95% interval {100 * low:.1f} to {100 * high:.1f}; target: at least {100 * target:.0f}%"
        tiles.append(html.Tile(name, f"{100 * accuracy:.1f}%", goal, accuracy >= target))
    minutes = "{} min {} s".format(*divmod(round(whole.seconds), 60))
    fast, small = whole.seconds <= TARGET_SECONDS, whole.peak_gb <= TARGET_GB
    if results.plan.continued:
        tiles.append(html.Tile("this session; the run began in an earlier one", minutes))
    else:
        tiles.append(html.Tile("from start to report", minutes, "target: 6 min", fast))
    tiles.append(html.Tile("peak memory", f"{whole.peak_gb:.1f} GB", "target: 6 GB", small))
    if results.plan.short:
        return [dataclasses.replace(tile, met=None) for tile in tiles]
    return tiles


def _accuracy(table: Sequence[Mapping[str, Any]]) -> list[html.AccuracyRow]:
    """The rows of `metrics.table` with intervals; what a guesser can expect is exact."""
    *kinds, mean = table
    rows = []
    for row, counts in [*((k, [k["n"]]) for k in kinds), (mean, [k["n"] for k in kinds])]:
        shares: dict[str, html.Share | None] = {
            mode: None
            if row[mode] is None
            else html.Share(row[mode], metrics.interval(row[mode], counts))
            for mode in benchmarks.MODES
        }
        shares["chance"] = html.Share(row["chance"])
        rows.append(html.AccuracyRow(_name(row["kind"]), row["n"], shares))
    return rows


def _gate(trace: switching.GateTrace) -> html.Picture:
    plot = plots.gates(
        trace.activation,
        [
            plots.PlottedExchange(
                e.topic == "image", e.frames, e.question, e.asked, e.said, e.answered
            )
            for e in trace.exchanges
        ],
    )
    means = f"{_number(trace.mean_activation('image'))} while it answers about the image and "
    means += f"{_number(trace.mean_activation('small talk'))} in small talk"
    peaks = f"{_number(trace.mean_peak('image'))} and {_number(trace.mean_peak('small talk'))}"
    talk = "; ".join(f"“{e.question}?” — “{e.said or '(silence)'}”" for e in trace.exchanges)
    return html.Picture(
        plot=plot,
        alt=f"Gate activation over time; the model's mean is {means}",
        text=f"One spoken conversation, answered freely: {talk}. The model's mean gate activation is "
        f"{means}; the mean peaks are {peaks}.",
        audio=trace.audio,
    )


def _number(activation: float) -> str:
    return "unknown (it is silent)" if math.isnan(activation) else f"{activation:.3f}"


def _loss(results: stages.QuickstartResults) -> html.Picture:
    lines = (results.plan.run / run_folder.METRICS).read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    curves = {}
    for key, name in _CURVES.items():
        finite = [(row["step"], row[key]) for row in logged if row[key] is not None]
        curves[name] = ([step for step, _ in finite], [value for _, value in finite])
    ends = ", ".join(f"{name} from {y[0]:.2f} to {y[-1]:.2f}" for name, (_, y) in curves.items())
    return html.Picture(plots.losses(curves), alt=f"Loss over {logged[-1]['step']} steps: {ends}")


def _trained(results: stages.QuickstartResults) -> list[tuple[str, str]]:
    config = results.model.config
    m, d = config.model, config.data
    backbone, depformer, image = m.backbone, m.depformer, m.siglip
    counts = load.counts(config)
    trained, frozen = counts["adapters"], counts["total"] - counts["adapters"]
    return [
        ("Trained", f"{trained:,} parameters: cross-attention, its gates and norms, image projection"),
        ("Frozen", f"{frozen:,} parameters: speech model and image encoder, unchanged by hash"),
        ("Speech model", f"{backbone.layers} layers, {backbone.width} wide, {backbone.heads} heads; "
         f"depth transformer {depformer.layers} layers, {depformer.width} wide"),
        ("Image encoder", f"{image.layers} layers, {image.width} wide, {image.image_size} px in "
         f"{image.tokens} patches"),
        ("Gate", repr(m.cross_attention.gate)),
        ("Steps", f"{config.train.steps:,}, each with {d.speech_rows} spoken and {d.speechless_rows} "
         "written dialogues"),
        ("Learning rate", f"{config.optim.learning_rate:g}, AdamW, warmup and cosine decay"),
    ]  # fmt: skip


def _certificates(results: stages.QuickstartResults) -> list[html.Certificate]:
    return [
        html.Certificate(
            name=RUNTIMES[target],
            error=c.get("max_abs_logit_error"),
            tolerance=c["tolerance"],
            frames=c.get("greedy_frames_equal"),
            verdict=c["verdict"],
            notes=verdict.notes(c, command=results.plan.certify(target)) if "not_run" in c else (),
        )
        for target, c in results.certificates.items()
    ]


def _codec(speech: stages.SpeechResults) -> list[tuple[str, int, html.Share]]:
    codec, n = speech.codec, speech.answer_words
    rows = [
        ("Held-out sentences, as synthesized", codec.words, codec.original),
        ("The same through the codec", codec.words, codec.codec),
        ("The model's own spoken answers, against what it wrote", n, speech.answer_accuracy),
    ]
    shares = [(name, n, html.Share(p, metrics.interval(p, [n]))) for name, n, p in rows if n]
    guess = ("Always guessing the most frequent word", codec.words, html.Share(codec.chance))
    return [*shares, guess] if codec.words else shares


def _name(kind: str) -> str:
    return {"yesno": "yes or no"}.get(kind, kind)


def _machine() -> str:
    device = jax.devices()[0]
    cpu = device.platform == "cpu"
    return f"{os.cpu_count()} CPU cores" if cpu else f"{jax.device_count()} x {device.device_kind}"
