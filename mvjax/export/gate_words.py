"""The gates that upstream's runtimes have, and what each runtime's config file calls them.

What is not listed here is no gate of theirs: a new dataclass, a new field of an old one, another activation.
"""

from __future__ import annotations

import dataclasses

from mvjax import gates

GATES: dict[str, gates.Gate | None] = {
    "none": None,
    "constant tanh": gates.Constant("tanh"),
    "constant sigmoid": gates.Constant("sigmoid"),
    "conditional tanh": gates.Conditional(activation="tanh"),
    "conditional sigmoid": gates.Conditional(),
    "conditional tanh, learned bias": gates.Conditional(activation="tanh", bias=True),
    "conditional sigmoid, learned bias": gates.Conditional(bias=True),
}
TORCH_GATES: dict[str, tuple[str, bool]] = {  # xa_gating, xa_conditional_gating
    "none": ("none", False),
    "constant tanh": ("tanh", False),
    "constant sigmoid": ("sigmoid", False),
    "conditional tanh": ("tanh", True),
    "conditional sigmoid": ("sigmoid", True),
}
MLX_GATES = {"conditional sigmoid": "sigmoid"}
CANDLE_GATES = {
    "none": "Normal",
    "constant tanh": "ConstantGatedTanh",
    "constant sigmoid": "ConstantGatedSigmoid",
    "conditional tanh": "ConditionalGatedTanh",
    "conditional sigmoid": "ConditionalGatedSigmoid",
    "conditional tanh, learned bias": "ConditionalGatedTanhLearnableBias",
    "conditional sigmoid, learned bias": "ConditionalGatedSigmoidLearnableBias",
}


def name(gate: gates.Gate | None) -> str | None:
    """Returns the key of `GATES` of this very gate, whatever its hidden width; None if no runtime has it."""
    if type(gate) is gates.Conditional:
        gate = dataclasses.replace(gate, hidden=gates.Conditional.hidden)
    return next((key for key, known in GATES.items() if known == gate), None)
