#!/usr/bin/env bash
# The study of arXiv:2302.03773 on E2E in small: tunes the shipped GPT-Neo-style model on E2E, then fills the table gum_e2e
# with 50 steps of pruning a run. Greedy search over 60 prompts; what has run is not run again.
#
# Example:
#   bash scripts/gum_e2e_table.sh DIR                    # with trainset.csv, ... of E2E in DIR
#   bash scripts/gum_e2e_table.sh DIR finetune=full      # one half; the other in a second terminal, then both
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[ $# -ge 1 ] || { echo "Usage: bash $0 DIR [prune-lab-table's overrides]; DIR holds E2E's files" >&2; exit 2; }
data="$(cd "$1" && pwd)" && shift
source "$root/scripts/setup.sh"
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
cd "$root" && mkdir -p outputs
ln -sfn "$data" outputs/e2e    # so that no path of this machine is in the table
small=(data.root=outputs/e2e data.training.limit_rows=10000 data.seqlen=256)
tuned="outputs/tuned_e2e"

if ! grep -qs '"status": "finished"' "$tuned/record.json"; then
    prune-lab model=reference_gpt_neo data=e2e "${small[@]}" 'stages=[finetune,evaluate,save]' finetune=full training.steps=300 \
        training.batch_size=16 evaluate=generation evaluate.limit=60 tracker=jsonl hydra.run.dir="$tuned"
fi
prune-lab-table gum_e2e "model.path=$tuned/model" "${small[@]}" data.limit_windows=64 \
    evaluate.generation.beams=1 evaluate.generation.no_repeat_ngram_size=0 evaluate.generation.limit=60 \
    training.steps=50 "$@"
