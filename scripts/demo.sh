#!/usr/bin/env bash
# Sets up what is needed, then prunes the default model and prints it beside the dense one. Arguments go to prune-lab.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# The default job needs no network, and should not wait for one.
[[ $# -gt 0 ]] || export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
exec prune-lab "$@"
