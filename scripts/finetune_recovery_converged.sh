#!/usr/bin/env bash
# Trains the shipped OPT-style and GPT-Neo-style models on until they have learned what this text has to teach (1400 steps),
# then fills the table finetune_recovery_converged. An hour and a half on one core; what has run is not run again.
#
# Example:
#   bash scripts/finetune_recovery_converged.sh
#   bash scripts/finetune_recovery_converged.sh model=converged_opt     # one half; the other in a second terminal, then both
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$root/scripts/setup.sh"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
cd "$root"
for model in reference reference_gpt_neo; do
    folder="outputs/converged/$model"
    grep -qs '"status": "finished"' "$folder/record.json" || prune-lab "model=$model" method=dense finetune=full \
        training.steps=1400 training.batch_size=8 training.lr=1e-3 training.decay=cosine data.seqlen=256 data.limit_windows=96 \
        'stages=[dense,finetune,evaluate,save]' evaluate=perplexity tracker=jsonl "hydra.run.dir=$folder"
done
prune-lab-table finetune_recovery_converged "$@"
