"""The result of a checkup as a table to print."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mvjax.eval.health import checkup

Row = tuple[str, Callable[[Mapping[str, Any]], str]]

_COLUMNS = {
    checkup.PLAIN: "plain Moshi",
    checkup.SEEING: "with image",
    "synthesizer": "synthesizer",
    "synthesizer_codec": "the same, codec",
}


def table(result: Mapping[str, Any]) -> str:
    """Returns all measures by name, one column for each voice."""
    timing, speech = result["timing"], result["speech"]
    names = [name for name in _COLUMNS if name in speech]
    lines = [["", *(_COLUMNS[name] for name in names)]]
    for title, cell in _TIMING:
        lines.append([title, *(cell(timing[name]) for name in names if name in timing)])
    for title, cell in _SPEECH if "dnsmos_note" in speech else _SPEECH[:2]:
        lines.append([title, *(cell(speech[name]) for name in names)])
    notes = [f"speech recognition: {speech['recognizer']}", speech.get("dnsmos_note")]
    return "\n".join([_aligned(lines), *filter(None, notes), "", *_leak(result)])


def _leak(result: Mapping[str, Any]) -> list[str]:
    same, leak = result["identity"], result["leak"]
    verdict = "identical" if same["identical"] else "NOT identical"
    lines = [
        f"no image, adapters loaded, against plain Moshi: {verdict} over {same['frames']} frames"
        f" (text {same['equal_text']}, audio {same['equal_audio']};"
        f" logits differ by at most {same['max_logit_difference']:.2g})",
        f"talk about something else, {leak['frames']} frames of plain Moshi's, teacher-forced:",
    ]
    rows = [["", "text loss", "semantic loss", "same text", "same semantic", "gate"]]
    for name in ("plain", "no_image", "unrelated_image"):
        r = leak[name]
        losses = [f"{r[key]:.4f}" for key in ("text_loss", "semantic_loss")]
        shares = [f"{100 * r[key]:.2f}%" for key in ("text_agreement", "semantic_agreement")]
        rows.append([f"  {name.replace('_', ' ')}", *losses, *shares, f"{r['gate']:.4f}"])
    free = leak["free"]
    differing, of = free["differing"]
    first = free["first_difference"]
    return [
        *lines,
        _aligned(rows),
        f"  left to itself with the image: {differing} of {of} conversations differ"
        + (f", first at frame {first:g} (median)" if first is not None else "")
        + f"; same text token in {100 * free['text_agreement']:.1f}% of frames",
    ]


def _share(key: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(values: Mapping[str, Any]) -> str:
        some, of = values[key]
        return f"{some}/{of}" + (f" ({100 * some / of:.0f}%)" if of else "")

    return cell


def _seconds(*keys: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(values: Mapping[str, Any]) -> str:
        shown = ["-" if values[key] is None else f"{values[key]:.2f} s" for key in keys]
        return " / ".join(shown)

    return cell


def _percent(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda values: "-" if values[key] is None else f"{100 * values[key]:.1f}%"


def _dnsmos(key: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(values: Mapping[str, Any]) -> str:
        score = values["dnsmos"][key]
        return "-" if score is None else f"{score:.2f}"

    return cell


_TIMING: Sequence[Row] = (
    ("turns answered", _share("answered")),
    ("time to respond, median / p90", _seconds("response_seconds", "response_seconds_p90")),
    ("pauses taken over", _share("taken_over")),
    ("interruptions that it gave way to", _share("gave_way")),
    ("stop latency / if not interrupted", _seconds("stop_seconds", "undisturbed_seconds")),
    ("greets before the user speaks", _share("greeted")),
    ("greeting starts at", _seconds("greeting_seconds")),
    ("overlap", _percent("overlap")),
    ("silence", _percent("silence")),
    ("assistant speaks", _percent("assistant")),
)
_SPEECH: Sequence[Row] = (
    ("word error rate", _percent("word_error_rate")),
    ("against another answer's text", _percent("mismatched")),
    *((f"DNSMOS {key}", _dnsmos(key)) for key in ("overall", "signal", "background", "p808")),
)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    columns = max(map(len, lines))
    padded = [[*line, *[""] * (columns - len(line))] for line in lines]
    widths = [max(len(line[i]) for line in padded) for i in range(columns)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in padded
    )
