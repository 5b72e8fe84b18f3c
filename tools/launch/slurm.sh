#!/usr/bin/env bash
#SBATCH --job-name=mvjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Trains on GPUs under SLURM, a process for each; from a checkout with its .venv, or with mvjax on the PATH.
#
#   sbatch --nodes=4 tools/launch/slurm.sh EXP.py --out /shared/runs/NAME [other arguments of mvjax train]
#
# Options of sbatch override those above. jax learns the processes from SLURM's variables; every task must see
# all GPUs of its node (no --gpus-per-task), and takes the one of its number. Before the time is up, and when
# the job is preempted, SLURM sends SIGTERM: the run saves a checkpoint, exits 0, and is queued again to resume.
set -euo pipefail

if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
    sed -n '/^set/q; 12,$s/^# \{0,1\}//p' "$0" >&2
    exit $(($# == 0 ? 2 : 0))
fi

out=
for ((i = 1; i < $#; i++)); do
    if [[ ${!i} == --out ]]; then
        next=$((i + 1))
        out=${!next}
    fi
done
: "${out:?give --out, a folder that every node sees, or gs:// or s3://}"

if [[ -x .venv/bin/mvjax ]]; then
    PATH=$PWD/.venv/bin:$PATH
fi
srun --kill-on-bad-exit=1 mvjax train "$@"
finished() { # RUN
    case $1 in
        gs://* | s3://*) mvjax train --finished "$1" ;;
        *) grep -q '"finished": true' "$1/summary.json" ;;
    esac
}
if ! finished "$out"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
