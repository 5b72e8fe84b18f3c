"""A folder beside the one that a command wants: the message says which."""

from pathlib import Path

import pytest

from mvjax import cli, run_folder
from mvjax.runtimes import loading

RUN, TORCH, MLX = (
    "runs/quickstart/run",
    "runs/quickstart/export/torch",
    "runs/quickstart/export/mlx",
)


@pytest.fixture
def quickstart(tmp_path, monkeypatch) -> Path:
    """Folders of a quickstart and of a second run, with the files that tell what they are."""
    for name in (
        *(f"{run}/{file}" for run in (RUN, "runs/other") for file in ("config.txt", "config.json")),
        f"{RUN}/checkpoints/00000400/x", f"{RUN}/eval/answers.json", f"{TORCH}/moshika-vis.yaml",
        f"{MLX}/config.json", "elsewhere/deep/down/x",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("runs/quickstart", RUN),
        ("runs/quickstart/", RUN),
        ("runs", f"runs/other, {RUN}"),
        (f"{RUN}/checkpoints", RUN),
        (f"{RUN}/checkpoints/00000400", RUN),
        (f"{RUN}/eval", RUN),
        (TORCH, RUN),
        (MLX, RUN),
        ("runs/quickstart/rnu", RUN),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("command", [["eval"], ["export", "--target", "torch", "--out", "x"]])
def test_what_takes_a_run_folder_says_which(quickstart, capsys, command, given, meant, absolute):
    root = f"{quickstart}/" if absolute else ""
    assert cli.main([command[0], root + given, *command[1:]]) == 2
    meant = ", ".join(root + name for name in meant.split(", "))
    expected = f"expected a run folder of `mvjax train`; did you mean {meant}?"
    assert expected in capsys.readouterr().err
    assert not (quickstart / "x").exists()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("runs/quickstart", f"{MLX}, {TORCH}"),
        ("runs/quickstart/export", f"{MLX}, {TORCH}"),
        (f"{TORCH}/nothing", TORCH),
    ],
)
def test_what_takes_an_export_folder_says_which(quickstart, given, meant):
    with pytest.raises(ValueError, match="expected .* that `mvjax export` wrote") as error:
        loading.open_folder(Path(given))
    assert str(error.value).endswith(f"; did you mean {meant}?")


def test_an_export_of_a_run_folder_is_not_there_yet(quickstart):
    with pytest.raises(ValueError, match="is a run folder: export it first"):
        loading.open_folder(Path(RUN))


def test_nothing_is_meant_where_there_is_nothing(quickstart):
    assert run_folder.nearby(Path("elsewhere/deep/down"), run_folder.is_run) == ""
    assert run_folder.nearby(Path("/"), lambda path: False) == ""


def test_training_does_not_start_a_run_among_others(quickstart, capsys):
    assert cli.main(["train", "exp.py", "--out", "runs/quickstart"]) == 2
    message = f"got a folder of runs; did you mean {RUN}?"
    assert message in capsys.readouterr().err
    assert not (quickstart / "runs/quickstart/config.json").exists()
    for new in ("runs/new", RUN):  # these stop at the experiment, which is not there
        assert cli.main(["train", "exp.py", "--out", new]) == 2
        assert "expected an experiment file" in capsys.readouterr().err
