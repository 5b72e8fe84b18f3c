"""What a design is: the questions that lines of the compatibility matrix ask of a model."""

from __future__ import annotations

from collections.abc import Callable

from mvjax import gates
from mvjax.config import schema


def gate(model: schema.ModelConfig) -> gates.Gate | None:
    """Returns the gate."""
    return model.cross_attention.gate


def conditional(
    activation: gates.Activation, *, bias: bool = False
) -> Callable[[schema.ModelConfig], bool]:
    """Returns the question whether a model has such a conditional gate, of whatever width."""

    def made_by(model: schema.ModelConfig) -> bool:
        found = gate(model)
        kind = isinstance(found, gates.Conditional)
        return kind and (found.activation, found.bias) == (activation, bias)

    return made_by


def other_width(model: schema.ModelConfig) -> bool:
    """Whether a conditional gate has not the hidden width that the runtimes build."""
    found, width = gate(model), int(0.125 * model.backbone.width)
    return isinstance(found, gates.Conditional) and found.hidden != width


def starts_late(model: schema.ModelConfig) -> bool:
    """Whether frames are seen from one after the first to the end."""
    scope = model.cross_attention.scope
    return scope.start > 0 and scope.frames is None


def ends(model: schema.ModelConfig) -> bool:
    """Whether only so many frames are seen."""
    return model.cross_attention.scope.frames is not None


def layers(model: schema.ModelConfig) -> tuple[bool, bool]:
    """Returns whether all layers look at the image, and whether layer 0 does."""
    return len(model.looking) == model.backbone.layers, 0 in model.looking


def image_norm(model: schema.ModelConfig) -> tuple[schema.NormKind, float]:
    """Returns (kind, eps) of the norm of image tokens."""
    return model.cross_attention.image_norm, model.cross_attention.image_norm_eps


def delays(model: schema.ModelConfig) -> tuple[bool, bool]:
    """Returns whether the assistant's delays are 0 1 1 .., and whether all acoustic ones agree."""
    own, users = model.codebooks_out, model.codebooks - 1 - model.codebooks_out
    late = max(model.delays)
    by_one = model.delays[: 1 + own] == (0, 0, *[1] * (own - 1))
    return by_one, model.delays == (0, *(0, *[late] * own)[:own], *(0, *[late] * users)[:users])
