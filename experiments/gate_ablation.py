"""Which gate, and how much sharing? The paper's tables 4 and 6, and more gates, in the hard digits world.

    mvjax sweep experiments/gate_ablation.py --seeds 3 --out runs/gates
    mvjax sweep experiments/gate_ablation.py --seeds 3 --out runs/gates --pick kv_layer_gate --pick null_key
    mvjax train experiments/gate_ablation.py --pick kv_layer_gate --out runs/gates/kv_layer_gate

A gate of your own: one class in `mvjax/gates.py`, and one line here.

Hardware and time: two CPU cores, 80 seconds a run; 25 trials. Records are made once, in two minutes.
Expected: as in the paper no clear winner by accuracy; a gate matters for talk that leaves the image.
Measured: docs/results.
"""

import dataclasses

from mvjax import gates
from mvjax.config import schema
from mvjax.config import study as study_lib
from mvjax.digits.hard import recipe

HIDDEN = 24  # D / 8, as in the paper


def base() -> schema.Config:
    """The run that every trial changes."""
    return recipe.digits_hard()


def sweep() -> dict[str, schema.Config]:
    """The runs by name."""
    return {name: run for trials in _groups().values() for name, run in trials.items()}


def study() -> study_lib.Study:
    """What they are compared for."""
    return study_lib.Study(
        title="Gates",
        question="Which gate sees best, and at what cost in parameters and FLOPs?",
        expected="No clear winner by accuracy, as in the paper's tables 4 and 6.",
        points=tuple(
            study_lib.Point(name, group) for group, trials in _groups().items() for name in trials
        ),
        benchmarks=(study_lib.Asked("digits-hard", ("text", "audio"), 144),),
        paper="gate_ablation",
        baseline="qkv_layer_gate",
    )


def _groups() -> dict[str, dict[str, schema.Config]]:
    return {
        "the paper's five": {
            "nothing_shared_no_gate": design(gate=None, share="none"),
            "kv_layer_gate": design(share="kv"),
            "qkv_layer_gate": design(),
            "kv_shared_gate": design(share="kv", share_gate=True),
            "qkv_shared_gate": design(share_gate=True),
        },
        # from here on, what the released model shares
        "no gate, or a constant": {
            "no_gate": design(gate=None),
            "constant_tanh": design(gate=gates.Constant("tanh")),
            "constant_sigmoid": design(gate=gates.Constant("sigmoid")),
        },
        "variants of the paper's gate": {
            "conditional_tanh": design(gate=gates.Conditional(HIDDEN, "tanh")),
            "learned_bias": design(gate=gates.Conditional(HIDDEN, bias=True)),
            "per_head": design(gate=gates.Mlp(HIDDEN, output="head")),
            "scalar": design(gate=gates.Mlp(HIDDEN, output="scalar")),
            "hidden_6": design(gate=gates.Conditional(6)),
            "hidden_96": design(gate=gates.Conditional(96)),
            "shift_0": design(gate=gates.Mlp(HIDDEN, shift=0.0)),
            "shift_2": design(gate=gates.Mlp(HIDDEN, shift=2.0)),
            "sees_residual": design(gate=gates.Mlp(HIDDEN, sees="x")),
            "sees_both": design(gate=gates.Mlp(HIDDEN, sees="both")),
        },
        "ours": {
            "null_key": design(gate=gates.NullKey()),
            "agreement": design(gate=gates.Agreement()),
            "dead_zone": design(gate=gates.DeadZone(HIDDEN)),
        },
        "fusion with a local window": {
            "local_window": design(gate=gates.LocalWindow()),
            "local_window_32": design(gate=gates.LocalWindow(32)),
        },
        "where, and of what, the image is seen": {
            "every_second_layer": design(layers=(0, 2)),
            "tokens_as_wide_as_features": design(dim=base().model.siglip.width),
        },
    }


def design(**fields) -> schema.Config:
    """The run with a cross-attention of these fields, else the released model's."""
    run = base()
    xa = schema.CrossAttentionConfig(**{"gate": gates.Conditional(HIDDEN), **fields})
    return dataclasses.replace(run, model=dataclasses.replace(run.model, cross_attention=xa))
