#!/usr/bin/env bash
#SBATCH --job-name=mvjax-sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Runs a sweep as a SLURM array, a task for each run; from a checkout with its .venv, or with mvjax on the PATH.
#
#   tools/launch/slurm_sweep.sh EXP.py --seeds 3 --out /shared/runs/NAME [other arguments of mvjax sweep]
#
# SBATCH="--partition=NAME --time=2:00:00" in the environment are options of sbatch. What is left to do is
# written to OUT/commands.txt (of a store: ./NAME-commands/), of which each task takes a line. Before the time is up
# SLURM sends SIGTERM: the training saves a checkpoint, exits 0, and its task is queued again to resume. `mvjax sweep`
# with the same arguments, once the array is through, writes each trial.json and runs again what failed.
set -euo pipefail

if [[ -x .venv/bin/mvjax ]]; then
    PATH=$PWD/.venv/bin:$PATH
fi
if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
    sed -n '/^set/q; 12,$s/^# \{0,1\}//p' "$0" >&2
    exit $(($# == 0 ? 2 : 0))
fi

finished() { # RUN
    case $1 in
        gs://* | s3://*) mvjax train --finished "$1" ;;
        *) grep -q '"finished": true' "$1/summary.json" ;;
    esac
}

if [[ -z ${SLURM_ARRAY_TASK_ID:-} ]]; then
    out=
    for ((i = 1; i < $#; i++)); do
        if [[ ${!i} == --out ]]; then
            next=$((i + 1))
            out=${!next}
        fi
    done
    : "${out:?give --out, a folder that every node sees, or gs:// or s3://}"
    lists=$out
    if [[ $out == *://* ]]; then # the nodes see the folder that this is started in
        lists=$PWD/$(basename "$out")-commands
    fi
    mkdir -p "$lists"
    mvjax sweep "$@" --dry-run >"$lists/commands.txt"
    count=$(wc -l <"$lists/commands.txt")
    if ((count == 0)); then
        echo "nothing is left to do" >&2
        exit 0
    fi
    read -ra options <<<"${SBATCH:-}"
    exec sbatch "--array=1-$count" "${options[@]}" "$0" "$lists/commands.txt"
fi

declare -a words
line=$(sed -n "${SLURM_ARRAY_TASK_ID}p" "$1")
while [[ -n $line ]]; do
    command=${line%%' && '*}
    line=${line:${#command}}
    line=${line#' && '}
    eval "words=($command)" # quoted by mvjax sweep
    srun --kill-on-bad-exit=1 "${words[@]}"
    if [[ ${words[1]} == train ]] && ! finished "${words[-1]}"; then
        scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
        exit 0
    fi
done
