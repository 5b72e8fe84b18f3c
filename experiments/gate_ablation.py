"""Which gate, and how much sharing? The grid of the paper's tables 4 and 6, in the digits world.

    mvjax train experiments/gate_ablation.py --pick kv_layer_gate --out runs/gates/kv_layer_gate
    mvjax eval runs/gates/kv_layer_gate

Hardware and time: two CPU cores, a few minutes a run.
Expected: as in the paper no clear winner by accuracy; a gate matters for talk that leaves the image.
Measured: not yet.
"""

import dataclasses

from mvjax import gates
from mvjax.config import schema
from mvjax.digits import recipe

HIDDEN = 24  # D / 8, as in the paper


def sweep() -> dict[str, schema.Config]:
    """The runs by name."""
    return {
        # the paper's five
        "nothing_shared_no_gate": _design(gate=None, share="none"),
        "kv_layer_gate": _design(share="kv"),
        "qkv_layer_gate": _design(),
        "kv_shared_gate": _design(share="kv", share_gate=True),
        "qkv_shared_gate": _design(share_gate=True),
        # other gates, with what the released model shares
        "no_gate": _design(gate=None),
        "conditional_tanh": _design(gate=gates.Conditional(HIDDEN, "tanh")),
        "constant_tanh": _design(gate=gates.Constant("tanh")),
        "constant_sigmoid": _design(gate=gates.Constant("sigmoid")),
        "learned_bias": _design(gate=gates.Conditional(HIDDEN, bias=True)),
        # where, and of what, the image is seen
        "every_second_layer": _design(layers=(0, 2)),
        "tokens_as_wide_as_features": _design(dim=recipe.digits().model.siglip.width),
    }


def _design(**fields) -> schema.Config:
    base = recipe.digits()
    design = schema.CrossAttentionConfig(**{"gate": gates.Conditional(HIDDEN), **fields})
    model = dataclasses.replace(base.model, cross_attention=design)
    return dataclasses.replace(base, model=model)
