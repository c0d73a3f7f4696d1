#!/usr/bin/env bash
# Sets up what is needed, then checks style and types and runs the tests. Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"
# Tests reach for no network; one thread each, because several run side by side.
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
ruff check .
ruff format --check .
mypy
exec python -m pytest -n logical --maxprocesses 4 --dist worksteal "$@"
