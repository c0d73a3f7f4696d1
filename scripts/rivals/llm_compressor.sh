#!/usr/bin/env bash
# Makes an environment for llm-compressor, whose pins of transformers and accelerate do not go with this project's:
#     bash scripts/rivals/llm_compressor.sh DIR
# then: python scripts/bench_rivals.py MODEL --llm-compressor DIR/bin/python --calibration FILE.npy --evaluation FILE.npy
set -euo pipefail
directory=${1:?give a folder for the environment}
python3 -m venv "$directory"
"$directory/bin/pip" install --quiet "torch==2.13.0"
"$directory/bin/pip" install --quiet "llmcompressor==0.14.0.1"
