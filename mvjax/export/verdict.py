"""The verdict of a certificate (pass, lossy, not run, fail), its reasons and words, from its fields alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mvjax import messages

GOOD = ("pass", "lossy", "not run")  # nothing that was compared differs
# what is held to the tolerance, and the magnitude that it is a share of, where that is above 1: the larger
# float32 sums are, the further apart they are, by how much depends on the processor
_WITHIN = {
    "max_abs_text_logit_error": "max_abs_text_logit",
    "max_abs_audio_logit_error": "max_abs_audio_logit",
    "max_abs_gate_error": "",
}


def verdict(certificate: Mapping[str, Any]) -> dict[str, Any]:
    """Returns "verdict" and "reasons", which follow from the other fields; KeyError if one is missing.

    "not run": the file holds the model's weights, and no runtime has computed with them yet.
    """
    ran = not certificate.get("not_run")
    reasons = _apart(certificate) if ran else []
    frozen = certificate["frozen"]
    if frozen["sha256_as_stored"] != frozen["sha256_in_export"]:
        reasons.append("the frozen tensors are not those that training started from")
    reasons += certificate["not_as_exported"]
    if differing := certificate["values"]["not_as_exported"]:
        reasons.append(
            f"the file does not hold these parameters of the model: {messages.names(differing)}"
        )
    if reasons:
        return {"verdict": "fail", "reasons": reasons}
    if not ran:
        return {"verdict": "not run", "reasons": []}
    return {"verdict": "pass" if certificate["loss"] is None else "lossy", "reasons": []}


def _apart(certificate: Mapping[str, Any]) -> list[str]:
    """Returns where what the runtime computed is further from JAX than the tolerance allows."""
    reasons = []
    for name, of in _WITHIN.items():
        largest = certificate.get(of, 1.0)  # an earlier certificate has none
        bound = certificate["tolerance"] * (max(1.0, largest) if math.isfinite(largest) else 1.0)
        if not certificate[name] <= bound:  # also catches NaN
            reasons.append(f"{name} = {certificate[name]:.3g} exceeds {bound:.3g}")
    equal, frames = certificate["greedy_frames_equal"], certificate["frames"]
    if equal < frames:
        reasons.append(f"greedy tokens agree over {equal} of {frames} frames")
    return reasons


def summary(certificate: Mapping[str, Any], *, command: str | None = None) -> str:
    """Returns verdict, errors, what rounding costs, what was left out, and every reason to fail, for people.

    `command` completes a certificate whose computation was not run, with the folders as they are here.
    """
    return "\n  ".join([_head(certificate), *certificate["reasons"], *_more(certificate, command)])


def notes(certificate: Mapping[str, Any], *, command: str | None = None) -> list[str]:
    """Returns what was not compared: all that a runtime computes, or what it does past the window."""
    if missing := certificate.get("not_run"):
        return [
            f"what a runtime computes with these files was not compared: {missing['needs']} was not"
            f" installed; where it is ({missing['install']}), this completes the certificate:"
            f" {command or missing['command']}"
        ]
    if certificate["talked_past_window"]:
        return []
    return [
        f"{certificate['frames']} frames do not reach past the attention window of"
        f" {certificate['window']}: what a runtime does there was not compared (--frames says how many)"
    ]


def _head(certificate: Mapping[str, Any]) -> str:
    if certificate.get("not_run"):
        held = certificate["values"]["tensors"] - len(certificate["values"]["not_as_exported"])
        return (
            f"{certificate['verdict']}: {held} of {certificate['values']['tensors']} parameters, read"
            " back, are the model's"
        )
    return (
        f"{certificate['verdict']}: largest logit error {certificate['max_abs_logit_error']:.2g},"
        f" greedy tokens agree over {certificate['greedy_frames_equal']} frames"
    )


def _more(certificate: Mapping[str, Any], command: str | None) -> list[str]:
    lines = notes(certificate, command=command)
    if loss := certificate.get("loss"):
        stored = certificate["stored_as"].removeprefix("as ")  # a type, or "as trained"
        lines.append(f"stored as {stored}, so beside the model as trained: {_in_words(loss)}")
    if loss := certificate.get("loss_with_8_bit_activations"):
        lines.append(f"with activations in 8 bits, as kyuteye_rs has them: {_in_words(loss)}")
    if served := certificate.get("served"):  # an earlier certificate has none
        in_dtype = f"served in {served['dtype']}"
        lines.append(f"{in_dtype}, beside the same in float32: {_in_words(served)}")
    return lines


def _in_words(apart: Mapping[str, Any]) -> str:
    return (
        f"logit error {apart['max_abs_logit_error']:.2g} at most, {apart['mean_abs_logit_error']:.2g} in"
        f" the mean; same greedy text in {apart['text_agreement']:.1%} and audio in"
        f" {apart['audio_agreement']:.1%} of cases"
    )
