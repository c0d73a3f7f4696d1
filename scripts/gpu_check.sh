#!/usr/bin/env bash
# Checks the lab on a GPU within eight minutes and writes results.jsonl and table.md: bash scripts/gpu_check.sh --help.
# Runs from the checkout and installs nothing into the Python that it finds, which must have torch and transformers:
#   PYTHON=...  names another Python
#   WHEELS=DIR  wheels of what that Python lacks, unpacked into a folder of their own (SITE=DIR; a new one by default)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
"$python" -c 'import torch, transformers' || {
    echo "$python has no torch or no transformers; name one that has: PYTHON=/path/to/python bash $0" >&2
    exit 2
}
export PYTORCH_NVML_BASED_CUDA_CHECK=1 # whoever asks whether there is a GPU does not start it, and can be forked
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export PRUNE_LAB_CACHE="${PRUNE_LAB_CACHE:-$(mktemp -d)}" # nothing of an earlier run is taken
if [[ -n "${WHEELS:-}" ]]; then
    site="${SITE:-$(mktemp -d)}"
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
        --upgrade --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$root:$site${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$python" "$root/scripts/gpu_check" "$@"
