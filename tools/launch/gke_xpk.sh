#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, through xpk (https://github.com/AI-Hypercomputer/xpk):
#
#   export CLUSTER=NAME TPU_TYPE=v5litepod-64 [SLICES=2] [WORKLOAD=NAME] [ZONE=ZONE] [PROJECT=PROJECT]
#   tools/launch/gke_xpk.sh EXP.py --out gs://BUCKET/runs/NAME --set data.root=gs://BUCKET/records [other arguments]
#   export STORAGE=NAME      # or an xpk storage attached to the cluster: Filestore, or a bucket through gcsfuse
#   tools/launch/gke_xpk.sh EXP.py --out /mounted/runs/NAME [other arguments of mvjax train]
#
# TPU_TYPE may also be a topology of mvjax plan, such as v5e:8x8 or v5p:2x2x4.
#
# The image is this tree on BASE_IMAGE (default python:3.12), installed when the pod starts; IMAGE=... takes
# one that has mvjax installed instead. jax finds the hosts in GKE's variables. On preemption Kubernetes sends
# SIGTERM: the run saves a checkpoint and exits 0, which the script turns into 42, on which xpk restarts it.
# THEN="COMMAND" follows in the pod when the run is finished, such as `mvjax eval`.
set -euo pipefail

if (($# == 0)) || [[ $1 == -h || $1 == --help ]]; then
    sed -n '/^set/q; 2,$s/^# \{0,1\}//p' "$0" >&2
    exit $(($# == 0 ? 2 : 0))
fi

: "${CLUSTER:?name of the cluster}" "${TPU_TYPE:?such as v5litepod-64}"

out=
for ((i = 1; i < $#; i++)); do
    if [[ ${!i} == --out ]]; then
        next=$((i + 1))
        out=${!next}
    fi
done
: "${out:?give --out, a folder on the storage, or gs:// or s3://}"
case $out in
    gs://* | s3://*) ;;
    *) : "${STORAGE:?name of an xpk storage, on which $out is}" ;;
esac
extras=train,tpu
case " $*" in *[\ =\"\'\(\[]gs://*) extras+=,gcs ;; esac
case " $*" in *[\ =\"\'\(\[]s3://*) extras+=,s3 ;; esac

TPU_TYPE=${TPU_TYPE/#v5e[:-]/v5litepod-} # as xpk has them: v5litepod-8x8, v5p-2x2x4
TPU_TYPE=${TPU_TYPE/:/-}
options=(--cluster="$CLUSTER" --tpu-type="$TPU_TYPE")
if [[ -n ${STORAGE:-} ]]; then
    options+=(--storage="$STORAGE")
fi
options+=(--workload="${WORKLOAD:-mvjax-$(date +%m%d-%H%M)}" --num-slices="${SLICES:-1}")
options+=(--max-restarts="${RESTARTS:-100}" --termination-grace-period-seconds="${GRACE:-180}")
for name in ZONE PROJECT; do
    if [[ -n ${!name:-} ]]; then
        options+=("--${name,,}=${!name}")
    fi
done
install=
if [[ -n ${IMAGE:-} ]]; then
    options+=(--docker-image="$IMAGE")
else
    tree=$(mktemp -d) # xpk would copy data and weights, too
    trap 'rm -rf "$tree"' EXIT
    "$(dirname "$0")/pack.sh" "$tree/tree.tar.gz"
    tar -C "$tree" -xzf "$tree/tree.tar.gz" && rm "$tree/tree.tar.gz"
    options+=(--base-docker-image="${BASE_IMAGE:-python:3.12}" --script-dir="$tree")
    install="pip install --quiet .[$extras] && "
fi

printf -v arguments ' %q' "$@"
case $out in
    gs://* | s3://*) printf -v unless_finished '{ mvjax train --finished %q || exit 42; }' "$out" ;;
    *) printf -v unless_finished '{ grep -q finished...true %q/summary.json || exit 42; }' "$out" ;;
esac
xpk workload create "${options[@]}" \
    --command="${install}mvjax train$arguments && $unless_finished${THEN:+ && $THEN}"
