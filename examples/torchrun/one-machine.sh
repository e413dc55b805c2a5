#!/usr/bin/env bash
# One run on all GPUs of one machine (without a GPU: on two processes of the CPU).
#
#   examples/torchrun/one-machine.sh recipe.yaml [--set key=value ...]
#
# PYTHON is the interpreter where no environment is activated: PYTHON=.venv/bin/python
# Ctrl-C saves and stops; the same command continues.
set -euo pipefail
if command -v nvidia-smi > /dev/null; then
  processes=gpu  # as many as CUDA_VISIBLE_DEVICES lets torchrun see
else
  processes=2
fi
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}  # seconds torchrun lets a stop take
exec "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc-per-node "${PROCESSES:-$processes}" -m sengi train "$@"
