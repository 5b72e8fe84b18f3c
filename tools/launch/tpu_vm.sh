#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU VM slice. From a checkout, on a machine with gcloud:
#
#   export TPU=NAME ZONE=ZONE [PROJECT=PROJECT]    # several slices: TPU="NAME-0 NAME-1"
#   tools/launch/tpu_vm.sh setup    copy this tree to all hosts, without what git ignores, and install it
#   tools/launch/tpu_vm.sh train EXP.py --out /shared/runs/NAME ...  start `mvjax train`; again to resume
#   tools/launch/tpu_vm.sh log                                       follow what the first host prints
#   tools/launch/tpu_vm.sh stop                                      finish the step, save a checkpoint, exit
#
# The run folder and the records are gs:// locations (or s3://), or paths that every host sees under the same name:
# Filestore, or a bucket mounted with gcsfuse. jax finds the hosts in the metadata of the slice; they need no
# configuration. Several slices are those of one queued resource (--node-count), whose metadata names them all.
set -euo pipefail

usage() { # STATUS
    sed -n '/^set/q; 2,$s/^# \{0,1\}//p' "$0" >&2
    exit "$1"
}

case ${1:-} in
    setup | train | log | stop) ;;
    -h | --help | help) usage 0 ;;
    *) usage 2 ;;
esac
: "${TPU:?name of the TPU VM}" "${ZONE:?its zone}"
where=(--zone="$ZONE")
if [[ -n ${PROJECT:-} ]]; then
    where+=(--project="$PROJECT")
fi

read -ra slices <<<"$TPU"

on() { # SLICE HOSTS COMMAND
    gcloud compute tpus tpu-vm ssh "$1" "${where[@]}" --worker="$2" --command="$3"
}

everywhere() { # COMMAND, on all hosts of every slice at once
    local started=() it status=0
    for it in "${slices[@]}"; do
        on "$it" all "$1" &
        started+=($!)
    done
    for it in "${started[@]}"; do wait "$it" || status=$?; done
    return $status
}

setup() {
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    "$(dirname "$0")/pack.sh" "$archive"
    for slice in "${slices[@]}"; do
        gcloud compute tpus tpu-vm scp "$archive" "$slice:mvjax.tar.gz" "${where[@]}" --worker=all
    done
    everywhere 'set -e
        mkdir -p mvjax && tar -C mvjax -xzf mvjax.tar.gz && cd mvjax
        [ -d .venv ] || python3 -m venv .venv
        .venv/bin/pip install --quiet -c constraints.txt -e ".[train,tpu,gcs]"'
}

train() { # arguments of mvjax train
    local arguments
    printf -v arguments ' %q' "$@"
    # setsid: a lost connection must not end the run. When the VM is shut down, every process gets SIGTERM.
    everywhere "cd mvjax || exit
        setsid nohup .venv/bin/mvjax train$arguments >>../mvjax.log 2>&1 </dev/null &
        echo \$! >../mvjax.pid"
}

case $1 in
    setup) setup ;;
    train) shift && train "$@" ;;
    log) on "${slices[0]}" 0 'tail -n 50 -F mvjax.log' ;;
    stop) everywhere "kill -TERM \$(cat mvjax.pid)" ;;
esac
