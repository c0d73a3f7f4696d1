#!/usr/bin/env bash
# Makes the tables of the post-training methods on the shipped models again: results/post_training.csv and
# sparsellm_gain.csv, their Markdown and their plots. One thread, so that seconds compare.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
cd "$root"
for table in post_training sparsellm_gain; do
    prune-lab-table "$table" --readme docs/small_models.md "$@"
done
