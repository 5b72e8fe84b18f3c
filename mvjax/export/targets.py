"""The upstream runtimes to export to, and where an export refuses a design: `refusals`.

What each runtime can run is data, in `matrix.py`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Literal, get_args

from mvjax.config import schema
from mvjax.export import matrix
from mvjax.weights import file_names

Target = Literal["torch", "mlx", "candle"]
Quantization = Literal["q8", "q4", "q8_0"]

TARGETS: tuple[Target, ...] = get_args(Target)
UPSTREAM: dict[Target, str] = {"torch": "kyuteye_pt", "mlx": "kyuteye_mlx", "candle": "kyuteye_rs"}


def refusals(config: schema.ModelConfig, target: Target) -> list[str]:
    """Returns why the target cannot run this design, each reason with a remedy; empty if it can."""
    made = [row for row in matrix.MATRIX if row.made_by(config)]
    problems = [
        f"{_values(config, row.fields)}: {UPSTREAM[target]}: {row.refused[target]}; {row.remedy}"
        for row in made
        if target in row.refused
    ]
    fields: dict[str, tuple[str, ...]] = {}
    for row in matrix.MATRIX:
        fields.setdefault(row.kind, row.fields)
    known = {row.kind for row in made}
    return problems + [
        f"{_values(config, fields[kind])}: {UPSTREAM[target]}: it has no such {kind};"
        " retrain with one of `mvjax export --list`"
        for kind in fields
        if kind not in known
    ]


def weight_file(target: Target, quantization: Quantization | None = None) -> str:
    """Returns upstream's name of the weight file; ValueError if the target reads no such file."""
    if quantization is None:
        return file_names.MODEL
    if target in matrix.QUANTIZED[quantization]:
        known = list(file_names.QUANTIZED[target]) or "none"
        raise ValueError(
            f"cannot export {quantization} to {target}: {matrix.QUANTIZED[quantization][target]};"
            f" its quantizations: {known}"
        )
    return file_names.QUANTIZED[target][quantization]


def table() -> str:
    """Returns the compatibility matrix as text, with numbered reasons below."""
    nothing: Mapping[str, str] = {}
    choices = [(row.choice, row.refused, row.nearly) for row in matrix.MATRIX]
    choices += [(f"file: {name}", nothing, nothing) for name in get_args(schema.Dtype)]
    choices += [(f"file: {name}", refused, nothing) for name, refused in matrix.QUANTIZED.items()]
    width = max(len(choice) for choice, *_ in choices)
    reasons: dict[str, int] = {}
    lines = ["".ljust(width) + "".join(f"  {target:11}" for target in TARGETS)]
    for choice, refused, nearly in choices:
        cells = [_cell(refused.get(t), nearly.get(t), reasons) for t in TARGETS]
        lines.append(choice.ljust(width) + "".join(f"  {cell:11}" for cell in cells))
    lines += ["", *(f"[{number}] {reason}" for reason, number in reasons.items())]
    return "\n".join(line.rstrip() for line in lines)


def _cell(refused: str | None, nearly: str | None, reasons: dict[str, int]) -> str:
    """Returns yes, no or nearly, with the number of the reason; a reason not yet in `reasons` is added."""
    reason = refused or nearly
    if reason is None:
        return "yes"
    return f"{'no' if refused else 'nearly'} [{reasons.setdefault(reason, len(reasons) + 1)}]"


def _values(config: schema.ModelConfig, fields: tuple[str, ...]) -> str:
    return ", ".join(f"{path}={operator.attrgetter(path)(config)!r}" for path in fields)
