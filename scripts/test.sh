#!/usr/bin/env bash
# Sets up what is needed, then checks style and types and runs the tests. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"
# Triton's interpreter stands in for a GPU in tests of kernels. Builds of PyTorch for CUDA bring the Triton that they need.
python -c 'import triton' 2>/dev/null \
    || python -W ignore -m pip --disable-pip-version-check install --quiet --no-deps triton==3.9.0 \
    || echo "Triton could not be installed; tests of kernels are skipped" >&2
# Tests reach for no network; one thread each, because several run side by side.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# They make tens of thousands of small folders; a file system in memory, where there is one, is much faster at that.
room_in() { # $1: a folder; whether it has 4 GiB, and runs programs
    local probe
    [[ $(df --output=avail --block-size=1G "$1" 2>/dev/null | tail -n 1) -ge 4 ]] || return 1
    probe="$(mktemp "$1/prune_lab.XXXXXX")" || return 1
    printf '#!/bin/sh\n' >"$probe" && chmod +x "$probe" && "$probe" 2>/dev/null
    local runs=$?
    rm -f "$probe"
    return $runs
}
if [[ -z ${PYTEST_DEBUG_TEMPROOT:-} ]] && room_in /dev/shm; then export PYTEST_DEBUG_TEMPROOT=/dev/shm; fi
ruff check .
ruff format --check .
mypy
# One process more than there are processors, as tests of clusters and of several processes mostly wait.
workers="$(python -c 'import os; print(min(os.cpu_count() + 1, 4))')"
exec python -m pytest -n "$workers" --dist worksteal "$@"
