#!/usr/bin/env bash
# Sets up what is needed, then prunes SmolLM2 to 50 % and shows it beside the dense model: prune-lab experiment=demo.
# Where that model cannot be had, the shipped reference_llama takes its place. Arguments are settings of prune-lab.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

job=(experiment=demo)
if [[ " $* " != *" model="* && " $* " != *" experiment="* ]]; then
    status=0
    { reason="$(python -m prune_lab.models.smollm2 2>&1 >&3)" || status=$?; } 3>&2
    case $status in
        0) ;;
        2)
            job+=(model=reference_llama)
            reason="${reason##*$'\n'}"
            echo "${reason%%. Do one of*}; so the demo prunes the shipped model reference_llama (docs/models.md)." >&2
            ;;
        *)
            printf '%s\n' "$reason" >&2
            exit "$status"
            ;;
    esac
fi
# What is left to do needs no network unless settings ask for it, and should not wait for one.
[[ $# -gt 0 ]] || export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
exec prune-lab "${job[@]}" "$@"
