"""Composes the quickstart's report: which numbers, plots, pictures and sounds go on the page."""

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

BARS = {"text": 0.90, "audio": 0.75}  # share of held-out questions answered
BAR_SECONDS, BAR_GB = 360.0, 6.0
RUNTIMES = {"torch": "PyTorch", "mlx": "MLX"}

_CURVES = {  # of metrics.jsonl
    "loss": "total",
    "text_speech": "text of spoken talk",
    "text_speechless": "text of written talk",
    "audio_speech": "speech codes",
}


def compose(results: stages.Results, timed: Sequence[html.Stage]) -> html.Report:
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


def _tiles(results: stages.Results, whole: html.Stage) -> list[html.Tile]:
    """Headline numbers; a short run is not judged."""
    judged = not results.plan.short
    table = results.evaluation.table
    tiles = []
    for mode, name in (("text", "written questions"), ("audio", "spoken questions, new voices")):
        rows = [row for row in table if row["kind"] != metrics.ALL]
        error = np.sqrt(sum(metrics.standard_error(r[mode], r["n"]) ** 2 for r in rows)) / len(rows)
        share, bar = table[-1][mode], BARS[mode]
        value = f"{100 * share:.1f} ± {100 * error:.1f} %"
        met = share >= bar if judged else None
        tiles.append(html.Tile(name, value, f"bar: at least {100 * bar:.0f} %", met))
    fast, small = whole.seconds <= BAR_SECONDS, whole.peak_gb <= BAR_GB
    minutes = "{} min {} s".format(*divmod(round(whole.seconds), 60))
    return [
        *tiles,
        html.Tile("from start to report", minutes, "bar: 6 min", fast if judged else None),
        html.Tile("peak memory", f"{whole.peak_gb:.1f} GB", "bar: 6 GB", small if judged else None),
    ]


def _gate(trace: switching.Trace) -> html.Picture:
    looks, talks = (
        [e.frames for e in trace.exchanges if e.topic == topic] for topic in ("image", "small talk")
    )
    asked = [(e.question, e.frames[0] + 1) for e in trace.exchanges]
    png = plots.gates(trace.opening, looks=looks, talks=talks, words=trace.words, asked=asked)
    seen, other = (switching.mean_opening(trace, topic) for topic in ("image", "small talk"))
    wide = [switching.mean_peak(trace, topic) for topic in ("image", "small talk")]
    told = "; ".join(f"“{e.question}?” — “{e.said or '(silence)'}”" for e in trace.exchanges)
    return html.Picture(
        png=png,
        alt=f"Gate opening over time: mean {seen:.3f} while answering about the image, "
        f"{other:.3f} while answering small talk",
        text=f"One spoken conversation, answered freely: {told}. While the model answers, the gates open "
        f"to {wide[0]:.3f} at most when it is about the image and {wide[1]:.3f} in small talk; on average "
        f"they stand at {seen:.3f} and {other:.3f}.",
        audio=trace.audio,
    )


def _loss(results: stages.Results) -> html.Picture:
    lines = (results.plan.run / run_folder.METRICS).read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    curves = {}
    for key, name in _CURVES.items():
        finite = [(row["step"], row[key]) for row in logged if row[key] is not None]
        curves[name] = ([step for step, _ in finite], [value for _, value in finite])
    ends = ", ".join(f"{name} from {y[0]:.2f} to {y[-1]:.2f}" for name, (_, y) in curves.items())
    return html.Picture(plots.losses(curves), alt=f"Loss over {logged[-1]['step']} steps: {ends}")


def _trained(results: stages.Results) -> list[tuple[str, str]]:
    config = results.model.config
    m, d = config.model, config.data
    backbone, depformer, image = m.backbone, m.depformer, m.siglip
    trained, frozen = stages.parameter_counts(results.model)
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


def _certificates(results: stages.Results) -> list[html.Certificate]:
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


def _codec(speech: stages.Speech) -> list[tuple[str, int, float]]:
    codec, answers = speech.codec, speech.answers
    rows = [
        ("Held-out sentences, as synthesized", codec.words, codec.original),
        ("The same through the codec", codec.words, codec.codec),
        ("The model's own spoken answers, against what it wrote", answers.words, answers.share),
        ("Always guessing the most frequent word", codec.words, codec.chance),
    ]
    return [row for row in rows if row[1]]


def _name(kind: str) -> str:
    return {"yesno": "yes or no"}.get(kind, kind)


def _machine() -> str:
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return f"{os.cpu_count()} CPU cores"
    return f"{len(devices)} x {devices[0].device_kind}"
