#!/usr/bin/env bash
# Packs this checkout for other hosts, as it lies here: what git ignores (data, weights, runs, .venv) stays.
#
#   tools/launch/pack.sh FILE.tar.gz
set -euo pipefail

archive=$(realpath "$1")
cd "$(dirname "$0")/../.."
git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' name; do
    [[ ! -e $name ]] || printf '%s\0' "$name"
done | tar --null -T - -czf "$archive"
