"""Experiment files, typed overrides, JSON; run as a script it rewrites the golden config texts."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mvjax import gates, tree
from mvjax.config import schema
from mvjax.config import text as config_text
from mvjax.train import load

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
CONFIG = schema.Config(
    frozen=schema.FrozenFiles("moshi", "siglip", "codec", "tokenizer"),
    data=schema.DataConfig(
        speech=(schema.Source("a"), schema.Source("b", 2.0)), prepare=json.dumps
    ),
)


def experiments() -> dict[str, str]:
    """{golden file name: text}; a sweep shows the fields in which its runs differ from its first."""
    texts = {}
    for path in sorted((ROOT / "experiments").glob("*.py")):
        names = runs(path)
        first, *_ = names.values()
        lines = [config_text.to_text(first)]
        for name, run in names.items() if len(names) > 1 else ():
            lines.append(f"\n[{name}]\n")
            changed = config_text.differences(first, run)
            lines += [f"{field} = {json.dumps(new)}\n" for field, (_, new) in changed.items()]
        texts[f"{path.stem}.txt"] = "".join(lines)
    return texts


def runs(path: Path) -> dict[str, schema.Config]:
    try:
        return {"": config_text.load_experiment(path)}
    except ValueError as error:
        _, _, names = str(error).partition("--pick: ")
        return {name: config_text.load_experiment(path, pick=name) for name in names.split(", ")}


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "experiments").glob("*.py")))
def test_golden_config(name):
    """A change here is a change of an experiment: review it, then run `python tests/test_config.py`."""
    assert experiments()[f"{name}.txt"] == (GOLDEN / f"{name}.txt").read_text()


def test_the_released_recipe_has_the_published_size():
    run = config_text.load_experiment(ROOT / "experiments" / "moshika_vis.py")
    adapters, frozen = (tree.flatten(part) for part in load.shapes(run))
    assert sum(leaf.size for leaf in adapters.values()) == 206_184_448  # the paper's 206 M
    language = [v for p, v in (adapters | frozen).items() if not p.startswith("image/")]
    assert sum(leaf.size for leaf in language) == 7_889_186_816  # kyuteye_pt without image_prefix
    rows = run.data.speech_rows + run.data.speechless_rows
    assert rows == 64
    speech, text = (sum(s.weight for s in x) for x in (run.data.speech, run.data.speechless))
    assert (speech, speech + text) == (40 - 10, 84)


def test_other_backbones_are_trained_at_moshikas_sizes():
    """By shape: PersonaPlex and J-Moshi have Moshi's, so parameters are those of the golden table."""
    moshika = config_text.load_experiment(ROOT / "experiments" / "moshika_vis.py")
    for name in ("personaplex_vis", "j_moshi_vis"):
        run = config_text.load_experiment(ROOT / "experiments" / f"{name}.py")
        assert run.model == moshika.model
        assert (run.frozen.codec, run.frozen.tokenizer) == ("", "")  # lie beside Moshi
    assert run.data.word_spaces is False


def test_sweep_names_design_trees_that_differ():
    designs = runs(ROOT / "experiments" / "gate_ablation.py")
    shapes = {name: str(load.shapes(run).adapters) for name, run in designs.items()}
    gate = {name: run.model.cross_attention.gate for name, run in designs.items()}
    assert len({(shapes[name], str(gate[name])) for name in designs}) == len(designs) == 25


def test_json_round_trip():
    assert config_text.from_json(json.loads(json.dumps(config_text.to_json(CONFIG)))) == CONFIG
    design = dataclasses.replace(CONFIG.model.cross_attention, gate=None)
    run = dataclasses.replace(
        CONFIG, model=dataclasses.replace(CONFIG.model, cross_attention=design)
    )
    assert config_text.from_json(config_text.to_json(run)) == run
    assert config_text.flatten(run)["data.prepare"] == "json:dumps"


def test_every_line_of_the_text_is_an_override():
    lines = config_text.to_text(CONFIG).splitlines()
    assert "model.cross_attention.gate.hidden = 512" in lines
    assert "data.speech.1.weight = 2.0" in lines
    assert config_text.override(CONFIG, lines) == CONFIG


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("train.steps=7", "train.steps", 7),
        ("optim.learning_rate=1e-3", "optim.learning_rate", 1e-3),
        ("optim.learning_rate=1", "optim.learning_rate", 1.0),
        ("data.root=123", "data.root", "123"),
        ('data.root="a b"', "data.root", "a b"),
        ("model.backbone.context_has_self=false", "model.backbone.context_has_self", False),
        ("model.backbone.context_has_self=True", "model.backbone.context_has_self", True),
        ("optim.betas=(0.8, 0.9)", "optim.betas", [0.8, 0.9]),
        ("train.trained=['xa/.*']", "train.trained", ["xa/.*"]),
        ("data.prepare=none", "data.prepare", None),
        ("train.remat=none", "train.remat", "none"),
        ("data.prepare=json:loads", "data.prepare", "json:loads"),
        ("model.cross_attention.share=kv", "model.cross_attention.share", "kv"),
        ("model.cross_attention.gate=none", "model.cross_attention.gate", None),
        ("model.cross_attention.gate=Constant", "model.cross_attention.gate", "Constant"),
        ("model.cross_attention.gate.hidden=64", "model.cross_attention.gate.hidden", 64),
        ("data.speech.1.weight=3", "data.speech.1.weight", 3.0),
    ],
)
def test_override(setting, field, value):
    changed = config_text.override(CONFIG, [setting])
    assert config_text.flatten(changed)[field] == value
    assert type(config_text.flatten(changed)[field]) is type(value)
    others = set(config_text.differences(CONFIG, changed)) - {field}
    assert all(other.startswith(field + ".") for other in others)


def test_overrides_apply_in_order():
    gate = "model.cross_attention.gate"
    changed = config_text.override(CONFIG, [f"{gate}=Constant", f"{gate}.activation=sigmoid"])
    assert changed.model.cross_attention.gate == gates.Constant("sigmoid")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "optim.learing_rate=1",
            "unknown field 'learing_rate' in optim.*did you mean 'learning_rate'",
        ),
        ("model.cross_attention.gate.hiden=3", "in Conditional|'hiden'.*did you mean 'hidden'"),
        ("xyz=1", "unknown field 'xyz'.*expected one of: .*frozen"),
        ("train.steps=1.5", "train.steps: expected int, got 1.5"),
        ("model.backbone.context_has_self=1", "context_has_self: expected bool, got 1"),
        ("train.steps=many", "train.steps: expected int, got 'many'"),
        ("train.steps.x=1", "train.steps is 50000 and has no field 'x'"),
        ("model.dtype=float16", "model.dtype: expected one of .*bfloat16.*got 'float16'"),
        ("model.cross_attention.gate=Constnt", "did you mean 'Constant'"),
        ("optim.betas=[1]", "optim.betas: expected 2 values, got 1"),
        ("data.prepare=json:none_such", "data.prepare: cannot import"),
        ("train.steps", "expected PATH=VALUE"),
        ("data.speech.5.name=x", "has no field '5'"),
    ],
)
def test_bad_override(setting, message):
    with pytest.raises(ValueError, match=message):
        config_text.override(CONFIG, [setting])


def test_all_bad_overrides_are_named():
    with pytest.raises(ValueError) as error:
        config_text.override(CONFIG, ["a=1", "train.steps=2", "train.seed=x"])
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "--set a=1",
        "--set train.seed=x",
    ]


def test_unknown_field_in_json():
    data = config_text.to_json(CONFIG)
    data["model"]["backbone"]["widht"] = 3
    with pytest.raises(ValueError, match=r"'widht' in model\.backbone.*did you mean 'width'"):
        config_text.from_json(data)


def test_only_importable_functions_can_be_written():
    run = dataclasses.replace(CONFIG, data=schema.DataConfig(prepare=lambda root: None))
    with pytest.raises(ValueError, match="can be imported by name"):
        config_text.to_json(run)


def test_an_experiment_imports_its_neighbors_and_each_loads_its_own(tmp_path):
    for name, steps in (("a", 7), ("b", 8)):
        folder = tmp_path / name
        (folder / "shared").mkdir(parents=True)
        (folder / "shared" / "numbers.py").write_text(f"STEPS = {steps}")
        (folder / "base.py").write_text(
            "from mvjax.digits import recipe\nfrom shared import numbers\n"
            "import dataclasses\ndef config():\n    import late\n"
            "    train = dataclasses.replace(late.TRAIN, steps=numbers.STEPS)\n"
            "    return dataclasses.replace(recipe.digits(), train=train)"
        )
        (folder / "late.py").write_text(
            "from mvjax.config import schema\nTRAIN = schema.TrainConfig()"
        )
        (folder / "exp.py").write_text("import base\nconfig = base.config")
    modules, places = set(sys.modules), list(sys.path)
    assert [config_text.load_experiment(tmp_path / n / "exp.py").train.steps for n in "ab"] == [
        7,
        8,
    ]
    assert places == sys.path
    assert {m for m in set(sys.modules) - modules if not m.startswith("mvjax.")} == set()


def test_modules_that_are_no_neighbors_stay(tmp_path, monkeypatch):
    """As for an experiment in the folder of the package itself, or above an environment."""
    (tmp_path / "sub" / "inner").mkdir(parents=True)
    (tmp_path / "sub" / "inner" / "installed.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "sub" / "inner"))
    (tmp_path / "exp.py").write_text(
        "import installed\nfrom mvjax.digits import recipe\nconfig = recipe.digits"
    )
    config_text.load_experiment(tmp_path / "exp.py")
    assert "installed" in sys.modules
    monkeypatch.delitem(sys.modules, "installed")


def test_a_function_of_a_neighbor_cannot_be_named_in_a_run_folder(tmp_path):
    (tmp_path / "neighbor.py").write_text("def prepare(root): pass")
    (tmp_path / "exp.py").write_text(
        "import neighbor\nfrom mvjax.config import schema\ndef config():\n"
        "    data = schema.DataConfig(prepare=neighbor.prepare)\n"
        "    return schema.Config(schema.FrozenFiles('', '', '', ''), data=data)"
    )
    with pytest.raises(ValueError, match="a function of a module.*got neighbor:prepare"):
        config_text.to_json(config_text.load_experiment(tmp_path / "exp.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "expected an experiment file"),
        ("x = 1", r"expected a function config\(\) or sweep\(\), got neither"),
        ("def config(): return 1 / 0", "ZeroDivisionError"),
        ("def config(:", "SyntaxError"),
        (  # what Python says; here in the tests, shape checking wraps the constructors
            'def config(): raise TypeError("OptimConfig.__init__() got an unexpected keyword '
            "argument 'learning_rat'\")",
            r"unknown field 'learning_rat' in .*OptimConfig.*did you mean 'learning_rate'\?",
        ),
        ("def sweep(): return {'one': 1}", r"choose one with --pick: one"),
    ],
)
def test_bad_experiment_file(tmp_path, text, message):
    path = tmp_path / "exp.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        config_text.load_experiment(path)


def test_pick_suggests_a_name():
    path = ROOT / "experiments" / "gate_ablation.py"
    with pytest.raises(ValueError, match="did you mean 'kv_layer_gate'"):
        config_text.load_experiment(path, pick="kv_layr_gate")


def test_shapes_make_no_parameter():
    leaves = jax.tree.leaves(load.shapes(CONFIG))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert all(leaf.dtype == np.float32 for leaf in leaves)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for file_name, golden in experiments().items():
        (GOLDEN / file_name).write_text(golden)
