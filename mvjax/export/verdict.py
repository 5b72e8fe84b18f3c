"""The verdict of a certificate: pass, lossy or fail, with every reason, from its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mvjax import messages

_WITHIN = ("max_abs_text_logit_error", "max_abs_audio_logit_error", "max_abs_gate_error")


def verdict(certificate: Mapping[str, Any]) -> dict[str, Any]:
    """Returns "verdict" and "reasons", which follow from the other fields; KeyError if one is missing."""
    tolerance, frozen = certificate["tolerance"], certificate["frozen"]
    reasons = [
        f"{name} = {certificate[name]:.3g} exceeds {tolerance:g}"
        for name in _WITHIN
        if not certificate[name] <= tolerance  # also catches NaN
    ]
    equal, frames = certificate["greedy_frames_equal"], certificate["frames"]
    if equal < frames:
        reasons.append(f"greedy tokens agree over {equal} of {frames} frames")
    if frozen["sha256_as_stored"] != frozen["sha256_in_export"]:
        reasons.append("the frozen tensors are not those that training started from")
    reasons += certificate["not_as_exported"]
    if differing := certificate["values"]["not_as_exported"]:
        reasons.append(
            f"the file does not hold these parameters of the model: {messages.names(differing)}"
        )
    passed = "pass" if certificate["loss"] is None else "lossy"
    return {"verdict": "fail" if reasons else passed, "reasons": reasons}
