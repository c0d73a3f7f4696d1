#!/usr/bin/env bash
# Makes results/reference.csv, results/tables/reference.md and results/plots again: one-shot methods on the shipped models.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
cd "$root"
exec prune-lab-table reference --readme docs/small_models.md "$@"
