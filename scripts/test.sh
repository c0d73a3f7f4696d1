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
ruff check .
ruff format --check .
mypy
exec python -m pytest -n logical --maxprocesses 4 --dist worksteal "$@"
