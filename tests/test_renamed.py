"""Configs in the words of the version before: read with a warning, or refused with a reason."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mvjax.config import renamed, schema
from mvjax.config import text as config_text
from mvjax.train import resume

ROOT = Path(__file__).parents[1]
# written by the version before: config.json of a run of its experiments/digits.py
OLD = ROOT / "tests" / "golden" / "config_before_renames.json"
CONFIG = schema.Config(
    frozen=schema.FrozenFiles("moshi", "siglip", "codec", "tokenizer"),
    data=schema.DataConfig(speech=(schema.Source("a"),)),
)


def old_json(path, value):
    """Today's JSON of CONFIG, with one field more."""
    data = config_text.to_json(CONFIG)
    *parents, name = path.split(".")
    part = data
    for parent in parents:
        part = part[parent]
    part[name] = value
    return data


def value_at(config, path):
    return config_text.flatten(config)[path]


def test_a_run_of_the_version_before_resumes_as_the_same_run():
    today = config_text.load_experiment(ROOT / "experiments" / "digits.py")
    with pytest.warns(FutureWarning) as caught:
        read = config_text.from_json(json.loads(OLD.read_text()))
    differing = config_text.differences(read, today)
    assert [path for path in differing if not re.fullmatch(resume.FREE, path)] == []
    (warning,) = caught
    for old, new in {**renamed.RENAMED, **renamed.MOVED}.items():
        assert f"{old} is now {new}" in str(warning.message)
    for path in renamed.REMOVED:
        assert f"{path} is gone" in str(warning.message)


def test_a_warning_shows_the_users_line_or_none(tmp_path):
    """In a process of its own: here jaxtyping's checks lie between the line and the warning."""
    (tmp_path / "exp.py").write_text(
        "import dataclasses\nfrom pathlib import Path\nfrom mvjax.config import schema, text\n"
        f"def config():\n    optim = schema.OptimConfig(ema=0.5)\n    return schema.Config({FILES},"
        " optim=dataclasses.replace(\n        optim, clip_norm=1.0, ema=0.9))\n"
        "if __name__ == '__main__':\n"
        "    text.override(text.load_experiment(Path(__file__)), ['optim.ema=0.25'])\n"
    )
    done = subprocess.run(
        [sys.executable, tmp_path / "exp.py"], capture_output=True, text=True, check=True
    )
    note = "FutureWarning: config: optim.ema is now optim.ema_decay; the old text is read in this"
    told = done.stderr.replace(str(tmp_path), "").splitlines()
    assert [line.partition(" version")[0] for line in told] == [
        *(f"/exp.py:5: {note}", "  optim = schema.OptimConfig(ema=0.5)"),
        *(f"/exp.py:6: {note}", f"  return schema.Config({FILES}, optim=dataclasses.replace("),
        f"mvjax:0: {note}",
    ]


def test_todays_text_gives_no_warning():
    config_text.from_json(config_text.to_json(CONFIG))
    config_text.override(CONFIG, config_text.to_text(CONFIG).splitlines())


@pytest.mark.parametrize(("old", "new"), renamed.RENAMED.items())
def test_an_old_name_sets_todays_field(old, new):
    value = {"train.stall_stacks": True}.get(old, 0.25 if old.startswith("optim") else 3)
    data = old_json(old, value)
    with pytest.raises(ValueError, match=f"{old} is now {new}, and both are given"):
        config_text.from_json(data)
    part, name = new.split(".")
    del data[part][name]
    with pytest.warns(FutureWarning, match=f"{old} is now {new}"):
        assert value_at(config_text.from_json(data), new) == value
    with pytest.warns(FutureWarning, match=f"{old} is now {new}"):
        changed = config_text.override(CONFIG, [f"{old}={value}"])
    assert value_at(changed, new) == value


@pytest.mark.parametrize(
    ("path", "harmless"), [(p, v) for p, (values, _) in renamed.REMOVED.items() for v in values]
)
def test_a_removed_field_is_dropped_if_it_changed_nothing(path, harmless):
    with pytest.warns(FutureWarning, match=f"{path} is gone"):
        assert config_text.from_json(old_json(path, harmless)) == CONFIG
    line = f"{path.removesuffix('.type')} = {json.dumps(harmless)}"  # as in an old config.txt
    with pytest.warns(FutureWarning, match=f"{path} is gone"):
        assert config_text.override(CONFIG, [line]) == CONFIG


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (
            "model.siglip.resampler",
            "image_rs",
            "Pillow; expected 'torch' or 'pillow', got 'image_rs'",
        ),
        ("model.cross_attention.gate_dtype", "activations", "rounds is not imitated"),
        ("model.cross_attention.image_norm_dtype", "activations", "rounds is not imitated"),
        ("model.cross_attention.keys_values", "bfloat16", "rounds is not imitated"),
        ("model.cross_attention.norm_without_image", True, "kyuteye_mlx adds"),
        ("model.cross_attention.norm_without_image", 0, "expected False, got 0"),
        ("model.cross_attention.scope.type", "AroundImage", "no image tokens"),
        ("model.stream.first_acoustic_kept", True, "kyuteye_rs"),
    ],
)
def test_a_removed_field_that_mattered_is_refused(path, value, why):
    message = f"{path}: this field is gone, because .*{why}"
    with pytest.raises(ValueError, match=message):
        config_text.from_json(old_json(path, value))
    with pytest.raises(ValueError, match=message):
        line = f"{path.removesuffix('.type')} = {json.dumps(value)}"
        config_text.override(CONFIG, [line])


def test_every_removed_field_that_mattered_is_named():
    data = old_json("model.cross_attention.gate_dtype", "activations")
    data["model"]["stream"]["first_acoustic_kept"] = True
    with pytest.raises(ValueError, match=r"gate_dtype.*\n.*first_acoustic_kept"):
        config_text.from_json(data)


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_module_that_moved_is_read_from_where_it_is(quote):
    old = f"frozen.moshi={quote}package:mvjax.tiny/assets/moshi.safetensors{quote}"
    with pytest.warns(FutureWarning, match="package:mvjax.tiny/ is now package:mvjax.digits/"):
        changed = config_text.override(CONFIG, [old])
    assert changed.frozen.moshi == "package:mvjax.digits/assets/moshi.safetensors"
    with pytest.warns(FutureWarning, match="mvjax.tiny.records: is now mvjax.digits.records:"):
        changed = config_text.override(CONFIG, ["data.prepare=mvjax.tiny.records:prepare"])
    assert value_at(changed, "data.prepare") == "mvjax.digits.records:prepare"


def load(path, text):
    path.write_text(f"from mvjax.config import schema\n{text}")
    return config_text.load_experiment(path)


FILES = 'schema.FrozenFiles("moshi", "siglip", "codec", "tokenizer")'


@pytest.mark.parametrize(("old", "new"), renamed.RENAMED.items())
def test_an_experiment_with_an_old_keyword_sets_todays_field(old, new, tmp_path):
    """Made anew, and by `dataclasses.replace`, which gives today's name as well."""
    part, name = old.split(".")
    kind = {"optim": "OptimConfig", "train": "TrainConfig"}[part]
    value = {"train.stall_stacks": True}.get(old, 0.25 if part == "optim" else 3)
    changes = (
        f"schema.{kind}({name}={value})",
        f"dataclasses.replace(schema.{kind}(), {name}={value})",
    )
    for change in changes:
        with pytest.warns(FutureWarning, match=f"{old} is now {new}"):
            run = load(
                tmp_path / "exp.py",
                f"import dataclasses\ndef config(): return schema.Config({FILES}, {part}={change})",
            )
        assert value_at(run, new) == value


@pytest.mark.parametrize(
    ("kind", "path", "harmless", "bad"),
    [
        ("SiglipConfig", "model.siglip.resampler", "pillow", "image_rs"),
        ("CrossAttentionConfig", "model.cross_attention.gate_dtype", "float32", "activations"),
        ("StreamConfig", "model.stream.first_acoustic_kept", False, True),
    ],
)
def test_an_experiment_with_a_removed_keyword(kind, path, harmless, bad, tmp_path):
    _, part, name = path.split(".")
    code = (
        f"def config(): return schema.Config({FILES}, model=schema.ModelConfig("
        f"{part}=schema.{kind}({name}={{!r}})))"
    )
    with pytest.warns(FutureWarning, match=f"{path} is gone"):
        assert load(tmp_path / "exp.py", code.format(harmless)).model == schema.ModelConfig()
    with pytest.raises(ValueError, match=f"exp.py: .*{path}: this field is gone, because"):
        load(tmp_path / "exp.py", code.format(bad))


def test_an_experiment_with_files_of_a_module_that_moved(tmp_path):
    files = FILES.replace('"moshi"', '"package:mvjax.tiny/assets/moshi.safetensors"')
    with pytest.warns(FutureWarning, match="package:mvjax.tiny/ is now package:mvjax.digits/"):
        run = load(tmp_path / "exp.py", f"def config(): return schema.Config({files})")
    assert run.frozen.moshi == "package:mvjax.digits/assets/moshi.safetensors"


def test_both_names_of_a_field_are_refused_where_both_are_written():
    both = "optim.ema is now optim.ema_decay, and both are given"
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match=both):
        schema.OptimConfig(ema=0.9, ema_decay=0.99)
    with pytest.warns(FutureWarning):
        replaced = dataclasses.replace(schema.OptimConfig(ema_decay=0.99), ema=0.9)
    assert replaced.ema_decay == 0.9


def test_an_old_name_is_known_in_its_own_class_only(tmp_path):
    with pytest.raises(ValueError, match="accumulate"):
        load(tmp_path / "exp.py", "schema.OptimConfig(accumulate=2)")
