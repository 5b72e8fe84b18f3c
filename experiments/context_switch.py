"""Does talk that leaves the image, or comes to it, need a gate or training on it? The paper's figure 5.

    mvjax sweep experiments/context_switch.py --seeds 3 --out runs/switch
    mvjax train experiments/context_switch.py --pick gate_p50 --out runs/gate_p50

No gate, a gate of each layer and one that layers share (all as the released model shares projections), each
trained without and with unrelated talk in half of the speech rows (`data.p_concat`). The benchmark asks after
0 to 10 exchanges about something else, in both directions; "blind" is the same model without the image, which
is what the image can cost.

Hardware and time: two CPU cores, two minutes a run; 6 trials.
Expected (paper): without a gate and without such talk, an image costs the most in talk about something else;
a gate, or training on it, mends most of it.
Measured: docs/results.
"""

import dataclasses

import gate_ablation

from mvjax.config import schema
from mvjax.config import study as study_lib

P_CONCAT = (0.0, 0.5)  # the paper's
DESIGNS = {"no_gate": {"gate": None}, "gate": {}, "shared_gate": {"share_gate": True}}


def sweep() -> dict[str, schema.Config]:
    """The runs by name."""
    return {_name(design, p): _run(design, p) for p in P_CONCAT for design in DESIGNS}


def study() -> study_lib.Study:
    """What they are compared for."""
    return study_lib.Study(
        title="Context switching",
        question="What does an image cost in talk about something else, and such talk in what is seen?",
        expected="A gate, or p_concat = 0.5, keeps most of both.",
        plot="context switch",
        x_label="exchanges before the question",
        points=tuple(
            study_lib.Point(_name(design, p), f"{design.replace('_', ' ')}, p_concat {p:g}")
            for p in P_CONCAT
            for design in DESIGNS
        ),
        benchmarks=(study_lib.Asked("digits-switch", ("text", "blind"), 168),),
        paper="context_switch",
        baseline=_name("gate", 0.5),
    )


def _name(design: str, p: float) -> str:
    return f"{design}_p{100 * p:.0f}"


def _run(design: str, p: float) -> schema.Config:
    run = gate_ablation.design(**DESIGNS[design])
    return dataclasses.replace(run, data=dataclasses.replace(run.data, p_concat=p))
