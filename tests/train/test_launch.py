"""The launch scripts, with stand-ins for the programs of clusters that are not here."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import toy

SCRIPTS = Path(__file__).parents[2] / "tools" / "launch"

SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
command = [argument for argument in sys.argv[1:] if not argument.startswith("--kill")]
ranks = [{{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}} for i in range(2)]
step = {{"SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1"}}
tasks = [subprocess.Popen(command, env={{**os.environ, **step, **rank}}) for rank in ranks]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
open("srun.pid", "w").write(str(os.getpid()))
sys.exit(max(task.wait() for task in tasks))
"""


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def told(folder: Path, script: str, *arguments: str, **variables: str) -> list[str]:
    """The arguments with which a script calls the one program that `folder` holds."""
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        [SCRIPTS / script, *arguments], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


ECHO = "#!/bin/bash\nprintf '%s\\0' \"$@\"\n"


def test_tpu_vm_starts_the_same_command_on_all_hosts(tmp_path):
    program(tmp_path / "bin", "gcloud", ECHO)
    train = ("train", "a.py", "--set", "x=(1, 2)", "--out", "/r")
    arguments = told(tmp_path / "bin", "tpu_vm.sh", *train, TPU="t", ZONE="z")
    assert arguments[:7] == ["compute", "tpus", "tpu-vm", "ssh", "t", "--zone=z", "--worker=all"]
    assert r"mvjax train a.py --set x=\(1\,\ 2\) --out /r >>" in arguments[7]
    stop = told(tmp_path / "bin", "tpu_vm.sh", "stop", TPU="t", ZONE="z", PROJECT="p")
    assert stop[6:] == ["--project=p", "--worker=all", "--command=kill -TERM $(cat mvjax.pid)"]


def test_tpu_vm_tells_every_slice_and_follows_the_first(tmp_path):
    program(
        tmp_path / "bin", "gcloud", '#!/bin/bash\nprintf "%s %s\\0" "$4" "$5"; [[ $5 != b-1 ]]\n'
    )
    env = {"TPU": "b-0 b-1", "ZONE": "z", "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    for command, named, status in (("stop", {"ssh b-0", "ssh b-1"}, 1), ("log", {"ssh b-0"}, 0)):
        script = [SCRIPTS / "tpu_vm.sh", command]
        done = subprocess.run(script, env=env, capture_output=True, text=True)
        assert set(done.stdout.split("\0")[:-1]) == named and done.returncode == status


def test_tpu_vm_keeps_running_when_the_connection_ends(tmp_path):
    """The command that the hosts get, on this one: what `stop` signals is mvjax itself."""
    home = tmp_path / "home"
    (home / "mvjax/.venv/bin").mkdir(parents=True)
    program(home / "mvjax/.venv/bin", "mvjax", '#!/bin/bash\necho "pid $$ $*"\n')
    program(tmp_path / "bin", "gcloud", ECHO)
    arguments = told(tmp_path / "bin", "tpu_vm.sh", "train", "a b.py", TPU="t", ZONE="z")
    command = arguments[-1].removeprefix("--command=")
    subprocess.run(["bash", "-c", command], cwd=home, check=True)
    log = home / "mvjax.log"
    for _ in range(100):
        if log.exists() and log.stat().st_size:
            break
        time.sleep(0.1)
    pid = (home / "mvjax.pid").read_text().strip()
    assert log.read_text().endswith(f"pid {pid} train a b.py\n")


@pytest.mark.parametrize(("finished", "status"), [("true", 0), ("false", 42)])
def test_xpk_starts_a_stopped_run_again(tmp_path, finished, status):
    program(tmp_path / "bin", "xpk", ECHO)
    out = tmp_path / "my run"
    out.mkdir()
    named = {"CLUSTER": "c", "TPU_TYPE": "v5p-8", "STORAGE": "s", "IMAGE": "i", "SLICES": "2"}
    arguments = told(tmp_path / "bin", "gke_xpk.sh", "a.py", "--out", str(out), **named)
    assert {"--docker-image=i", "--storage=s", "--tpu-type=v5p-8", "--num-slices=2"} < set(
        arguments
    )
    program(tmp_path / "bin", "mvjax", "#!/bin/bash\n")
    (out / "summary.json").write_text(f'{{\n "step": 3,\n "finished": {finished}\n}}\n')
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    command = arguments[-1].removeprefix("--command=")
    assert subprocess.run(["bash", "-c", command], env=env).returncode == status


def test_xpk_needs_no_storage_for_a_bucket(tmp_path):
    program(tmp_path / "bin", "xpk", ECHO)
    named = {"CLUSTER": "c", "TPU_TYPE": "v5p-8", "STORAGE": ""}
    words = ("a.py", "--out", "gs://b/r", "--set", "data.root=s3://b/d")
    arguments = told(tmp_path / "bin", "gke_xpk.sh", *words, **named)
    assert not any(argument.startswith("--storage") for argument in arguments)
    command = arguments[-1].removeprefix("--command=")
    assert command.startswith("pip install --quiet .[train,tpu,gcs,s3] && mvjax train a.py ")
    assert command.endswith("{ mvjax train --finished gs://b/r || exit 42; }")


@pytest.mark.parametrize("finished", [True, False])
def test_slurm_asks_a_bucket_whether_the_run_is_finished(tmp_path, finished):
    for name in ("srun", "scontrol"):
        program(tmp_path / "bin", name, f'#!/bin/bash\necho {name} "$@"\n')
    asked = f'#!/bin/bash\necho mvjax "$@"\nexit {int(not finished)}\n'
    program(tmp_path / "bin", "mvjax", asked)
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    command = [SCRIPTS / "slurm.sh", "a.py", "--out", "s3://b/r"]
    done = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    expected = ["srun --kill-on-bad-exit=1 mvjax train a.py --out s3://b/r"]
    expected += ["mvjax train --finished s3://b/r", *([] if finished else ["scontrol requeue 7"])]
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("v5litepod-64", "v5litepod-64"),
        ("v5e:8x8", "v5litepod-8x8"),
        ("v5e-64", "v5litepod-64"),
        ("v5p:2x2x4", "v5p-2x2x4"),
    ],
)
def test_xpk_gets_its_own_name_of_a_slice(tmp_path, given, name):
    program(tmp_path / "bin", "xpk", ECHO)
    named = {"CLUSTER": "c", "TPU_TYPE": given, "STORAGE": "s", "IMAGE": "i"}
    arguments = told(tmp_path / "bin", "gke_xpk.sh", "a.py", "--out", "/r", **named)
    assert f"--tpu-type={name}" in arguments


def checkout(folder: Path) -> Path:
    """A small checkout with the scripts, and with what git ignores in the real one; its tools/launch."""
    shutil.copytree(SCRIPTS, folder / "tools" / "launch")
    shutil.copy(SCRIPTS.parents[1] / ".gitignore", folder)
    for name in (
        "data/a.array_record", "weights/moshi.safetensors", "runs/x/config.json", "exported/m/README.md",
        ".venv/bin/python", ".venv-lowest/bin/python", "pyproject.toml", "mvjax/data/images.py", "my new.py",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for command in (["init", "-q"], ["add", "pyproject.toml", "mvjax"]):
        subprocess.run(["git", "-C", folder, *command], check=True)
    (folder / "mvjax" / "deleted.py").touch()
    subprocess.run(["git", "-C", folder, "add", "mvjax"], check=True)
    (folder / "mvjax" / "deleted.py").unlink()
    return folder / "tools" / "launch"


PACKED = {"pyproject.toml", "mvjax/data/images.py", "my new.py", ".gitignore"}


def test_what_is_copied_to_the_hosts_is_the_tree_without_data_and_weights(tmp_path):
    """tpu_vm.sh sends an archive, xpk gets a folder."""
    launch = checkout(tmp_path / "tree")
    program(
        tmp_path / "bin", "gcloud", '#!/bin/bash\n[[ $4 != scp ]] || tar -tzf "$5" >files.txt\n'
    )
    find = '[[ $x != --script-dir=* ]] || (cd "${x#*=}" && find . -type f)'
    program(tmp_path / "bin", "xpk", f"#!/bin/bash\nfor x; do {find}; done >files.txt\n")
    env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "TPU": "t", "ZONE": "z"}
    env |= {"CLUSTER": "c", "TPU_TYPE": "v5p-8", "STORAGE": "s"}
    env.pop("IMAGE", None)
    for command in (["tpu_vm.sh", "setup"], ["gke_xpk.sh", "a.py", "--out", "/r"]):
        subprocess.run([launch / command[0], *command[1:]], env=env, cwd=tmp_path, check=True)
        names = {
            line.removeprefix("./") for line in (tmp_path / "files.txt").read_text().splitlines()
        }
        assert {name for name in names if not name.startswith("tools/launch/")} == PACKED


LINES = """mvjax train a.py --set 'x=(1, 2)' --out {0}/a/seed-0 && mvjax eval {0}/a/seed-0 --benchmark b
mvjax train a.py --out {0}/a/seed-1 && mvjax eval {0}/a/seed-1
mvjax eval {0}/b/seed-0 --benchmark b
"""


def sweeping(folder: Path, out: Path) -> dict[str, str]:
    """The environment of scripts for which `mvjax sweep --dry-run` prints LINES, and all else echoes."""
    text = LINES.format(out)
    for name in ("sbatch", "srun", "scontrol", "xpk"):
        program(folder, name, f'#!/bin/bash\necho {name} "$@"\n')
    program(folder, "mvjax", f"#!/bin/bash\n[[ $1 != sweep ]] || cat <<'END'\n{text}END\n")
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def test_a_slurm_array_runs_the_lines_of_a_sweep(tmp_path):
    env, out = sweeping(tmp_path / "bin", tmp_path / "out"), tmp_path / "out"

    def job(*words, **variables):
        command = [SCRIPTS / "slurm_sweep.sh", *words]
        done = subprocess.run(
            command, env=env | variables, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    (submitted,) = job("a.py", "--out", str(out), SBATCH="--time=9 --mem=1")
    commands = str(out / "commands.txt")
    assert submitted.startswith("sbatch --array=1-3 --time=9 --mem=1 ") and commands in submitted
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    run = out / "a" / "seed-0"
    run.mkdir(parents=True)
    (run / "summary.json").write_text('{\n "finished": false\n}')
    trained = f"srun --kill-on-bad-exit=1 mvjax train a.py --set x=(1, 2) --out {run}"
    assert job(commands, **array) == [trained, "scontrol requeue 7_1"]
    (run / "summary.json").write_text('{\n "finished": true\n}')
    evaluated = f"srun --kill-on-bad-exit=1 mvjax eval {run} --benchmark b"
    assert job(commands, **array) == [trained, evaluated]
    (last,) = job(commands, **array | {"SLURM_ARRAY_TASK_ID": "3"})
    assert last == f"srun --kill-on-bad-exit=1 mvjax eval {out}/b/seed-0 --benchmark b"


def test_xpk_gets_a_workload_for_each_run_of_a_sweep(tmp_path):
    env = sweeping(tmp_path / "bin", tmp_path / "out")
    env |= {"CLUSTER": "c", "TPU_TYPE": "v5p-8", "STORAGE": "s", "IMAGE": "i", "WORKLOAD": "w"}
    command = [SCRIPTS / "gke_xpk_sweep.sh", "a.py", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "--workload=w-1 " in first and "--workload=w-2 " in second
    run = tmp_path / "out" / "a" / "seed-0"
    assert rf"mvjax train a.py --set x=\(1\,\ 2\) --out {run} && {{ grep" in first
    assert first.endswith(f"exit 42; }} && mvjax eval {run} --benchmark b")
    assert f"mvjax eval {tmp_path}/out/b/seed-0" in done.stderr  # trained already


SCRIPT_NAMES = ["slurm.sh", "gke_xpk.sh", "tpu_vm.sh", "slurm_sweep.sh", "gke_xpk_sweep.sh"]


@pytest.mark.parametrize("script", SCRIPT_NAMES)
def test_a_script_alone_prints_its_usage(script):
    env = {"PATH": os.environ["PATH"]}
    for arguments, status in (([], 2), (["--help"], 0)):
        done = subprocess.run(
            [SCRIPTS / script, *arguments], env=env, capture_output=True, text=True
        )
        assert done.returncode == status and f"  tools/launch/{script} " in done.stderr.replace(
            "sbatch --nodes=4", " "
        )
        assert "set -euo" not in done.stderr and "#!" not in done.stderr


@pytest.mark.parametrize("script", ["slurm.sh", "gke_xpk.sh"])
def test_without_a_run_folder(script):
    env = {**os.environ, "CLUSTER": "c", "TPU_TYPE": "v5p-8", "STORAGE": "s"}
    done = subprocess.run([SCRIPTS / script, "a.py"], env=env, capture_output=True, text=True)
    assert done.returncode and "give --out" in done.stderr


@pytest.mark.slow
def test_slurm_queues_a_stopped_run_again(tmp_path):
    """Two tasks that jax finds by SLURM's variables; a signal, a second job, and the end."""
    folder = tmp_path / "several"
    toy.make_config(folder / "frozen")
    program(tmp_path / "bin", "srun", SRUN)
    program(tmp_path / "bin", "scontrol", '#!/bin/bash\necho "$*" >>scontrol.txt\n')
    script = (
        f'#!/bin/bash\nexec {sys.executable} {toy.__file__} {folder} --seconds "$SECONDS_A_STEP"\n'
    )
    program(tmp_path / "bin", "mvjax", script)

    def job(seconds: float) -> subprocess.Popen:
        env = processes.environment(folder, devices=1)
        env |= {"PATH": f"{tmp_path}/bin:{env['PATH']}", "SECONDS_A_STEP": str(seconds)}
        env["SLURM_JOB_ID"] = str(random.randrange(10**6))  # also chooses the port
        command = [SCRIPTS / "slurm.sh", "toy.py", "--out", folder / "run"]
        return subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    first = job(0.7)
    processes.wait_for_step(folder, 4)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGTERM)
    processes.finish([first])
    assert (tmp_path / "scontrol.txt").read_text().startswith("requeue ")
    (tmp_path / "scontrol.txt").unlink()
    (output,) = processes.finish([job(0.0)])
    assert "resumes at step" in output and "2 processes" in output
    assert not (tmp_path / "scontrol.txt").exists()
    processes.finish(processes.start(tmp_path / "one", devices=2))
    one, two = ([line["loss"] for line in processes.metrics(f)] for f in (tmp_path / "one", folder))
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
