"""Composes the quickstart's report: the numbers, plots, images and sounds that go on the page."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
from collections.abc import Sequence

import jax
import numpy as np

import mvjax
from mvjax import run_folder
from mvjax.digits import stages
from mvjax.eval import metrics, switching
from mvjax.report import html, plots
from mvjax.train import load

# Targets: accuracy on held-out questions, time from start to report, peak memory.
TARGET_ACCURACY = {"text": 0.90, "audio": 0.75}
TARGET_SECONDS, TARGET_GB = 360.0, 6.0
RUNTIMES = {"torch": "PyTorch", "mlx": "MLX"}

_CURVES = {  # of metrics.jsonl
    "loss": "total",
    "text_speech": "text of spoken talk",
    "text_speechless": "text of written talk",
    "audio_speech": "speech codes",
}


def compose(results: stages.QuickstartResults, timed: Sequence[html.Stage]) -> html.Report:
    """Returns the page; the last of `timed` is the whole run."""
    now = datetime.datetime.now(datetime.UTC)
    return html.Report(
        title="A small voice model learned to see digits",
        subtitle=f"mvjax quickstart on {_machine()}, {now:%d %B %Y}"
        + (": a short run, too short to learn" if results.plan.short else ""),
        tiles=_tiles(results, timed[-1]),
        examples=[dataclasses.replace(e, kind=_name(e.kind)) for e in results.speech.examples],
        accuracy=[{**row, "kind": _name(row["kind"])} for row in results.evaluation.table],
        gate=_gate(results.speech.trace),
        trained=_trained(results),
        loss=_loss(results),
        certificates=_certificates(results),
        codec=_codec(results.speech),
        stages=timed,
        footer=f"mvjax {mvjax.__version__}, jax {jax.__version__}, "
        f"Python {platform.python_version()}. This page needs no network.",
    )


def _tiles(results: stages.QuickstartResults, whole: html.Stage) -> list[html.Tile]:
    """Headline numbers; a short run is not judged."""
    *rows, mean = results.evaluation.table
    tiles = []
    for mode, name in (("text", "written questions"), ("audio", "spoken questions, new voices")):
        error = np.sqrt(sum(metrics.standard_error(r[mode], r["n"]) ** 2 for r in rows)) / len(rows)
        accuracy, target = mean[mode], TARGET_ACCURACY[mode]
        value = f"{100 * accuracy:.1f} ± {100 * error:.1f} %"
        goal = f"target: at least {100 * target:.0f} %"
        tiles.append(html.Tile(name, value, goal, accuracy >= target))
    minutes = "{} min {} s".format(*divmod(round(whole.seconds), 60))
    fast, small = whole.seconds <= TARGET_SECONDS, whole.peak_gb <= TARGET_GB
    tiles.append(html.Tile("from start to report", minutes, "target: 6 min", fast))
    tiles.append(html.Tile("peak memory", f"{whole.peak_gb:.1f} GB", "target: 6 GB", small))
    if results.plan.short:
        return [dataclasses.replace(tile, met=None) for tile in tiles]
    return tiles


def _gate(trace: switching.GateTrace) -> html.Picture:
    looks, talks = (
        [e.frames for e in trace.exchanges if e.topic == topic] for topic in ("image", "small talk")
    )
    asked = [(e.question, e.frames[0] + 1) for e in trace.exchanges]
    png = plots.gates(trace.activation, looks=looks, talks=talks, words=trace.words, asked=asked)
    means = f"{trace.mean_activation('image'):.3f} while it answers about the image and "
    means += f"{trace.mean_activation('small talk'):.3f} in small talk"
    peaks = f"{trace.mean_peak('image'):.3f} and {trace.mean_peak('small talk'):.3f}"
    talk = "; ".join(f"“{e.question}?” — “{e.said or '(silence)'}”" for e in trace.exchanges)
    return html.Picture(
        png=png,
        alt=f"Gate activation over time; the model's mean is {means}",
        text=f"One spoken conversation, answered freely: {talk}. The model's mean gate activation is "
        f"{means}; the mean peaks are {peaks}.",
        audio=trace.audio,
    )


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
            error=c["max_abs_logit_error"],
            tolerance=c["tolerance"],
            frames=c["greedy_frames_equal"],
            passed=c["verdict"] == "pass",
        )
        for target, c in results.certificates.items()
    ]


def _codec(speech: stages.SpeechResults) -> list[tuple[str, int, float]]:
    codec, n = speech.codec, speech.answer_words
    rows = [
        ("Held-out sentences, as synthesized", codec.words, codec.original),
        ("The same through the codec", codec.words, codec.codec),
        ("The model's own spoken answers, against what it wrote", n, speech.answer_accuracy),
        ("Always guessing the most frequent word", codec.words, codec.chance),
    ]
    return [row for row in rows if row[1]]


def _name(kind: str) -> str:
    return {"yesno": "yes or no"}.get(kind, kind)


def _machine() -> str:
    device = jax.devices()[0]
    cpu = device.platform == "cpu"
    return f"{os.cpu_count()} CPU cores" if cpu else f"{jax.device_count()} x {device.device_kind}"
