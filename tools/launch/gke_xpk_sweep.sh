#!/usr/bin/env bash
# Runs a sweep on a GKE cluster, through xpk: a workload for each run, with `gke_xpk.sh`, whose variables it takes.
#
#   export CLUSTER=NAME TPU_TYPE=v5litepod-8 STORAGE=NAME
#   tools/launch/gke_xpk_sweep.sh EXP.py --seeds 3 --out /mounted/runs/NAME [other arguments of mvjax sweep]
#
# The folder is the one that pods see, or gs:// or s3:// (then without STORAGE). From a machine that does not see it
# every run is started: one that is finished says so and ends. `mvjax sweep` with the same arguments, where the folder
# is mounted, writes each trial.json and runs again what failed.
set -euo pipefail

if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
    sed -n '/^set/q; 2,$s/^# \{0,1\}//p' "$0" >&2
    exit $(($# == 0 ? 2 : 0))
fi

declare -a words
number=0
prefix=${WORKLOAD:-mvjax-$(date +%m%d-%H%M)}
lines=$(mvjax sweep "$@" --dry-run)
while IFS= read -r line; do
    train=${line%%' && '*}
    if [[ $train != 'mvjax train '* ]]; then
        echo "trained, to be evaluated where the folder is: $line" >&2
        continue
    fi
    number=$((number + 1))
    eval "words=($train)" # quoted by mvjax sweep
    after=${line:${#train}}
    WORKLOAD=$prefix-$number THEN=${after#' && '} "$(dirname "$0")/gke_xpk.sh" "${words[@]:2}" </dev/null
done <<<"$lines"
