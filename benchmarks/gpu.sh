#!/bin/bash
# Runs commands on a machine with a GPU and without a network, beside wheels that were brought along (images/wheels.py):
#
#   bash benchmarks/gpu.sh OUTPUT "wheels/1 wheels/2" 'python3 -m pytest tests/gpu -m gpu' 'python3 -m benchmarks.gpu'
#
# All that they print is in OUTPUT/log too. A command that fails does not keep the next one back.
set -uo pipefail
output=$1 wheels=$2
shift 2
site=$(mktemp -d)
mkdir -p "$output"
{
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || echo "no GPU"
    for folder in $wheels; do
        python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$folder"/*.whl
    done
    export PYTHONPATH=$site PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 UNSLOTH_COMPILE_LOCATION=$site/unsloth_compiled
    python3 -c "import torch, transformers, trl, peft; print(torch.__version__, transformers.__version__, trl.__version__)"
    for command in "$@"; do
        begun=$SECONDS
        echo "== $command"
        bash -c "$command"
        echo "== exit code $? after $((SECONDS - begun)) s"
    done
} 2>&1 | tee "$output/log"
