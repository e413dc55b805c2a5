#!/usr/bin/env bash
# One run on several machines: start this on each of them, with the same values but NODE_RANK.
#
#   HEAD=10.0.0.1 NODES=2 NODE_RANK=0 examples/torchrun/many-machines.sh recipe.yaml     # on 10.0.0.1
#   HEAD=10.0.0.1 NODES=2 NODE_RANK=1 examples/torchrun/many-machines.sh recipe.yaml     # on the other one
#
# output_dir, the model and the token store ($SENGI_CACHE) must lie on a file system that all machines share.
# ADDRESS is this machine's own address where the others reach it (needed where its host name does not resolve).
# PYTHON is the interpreter where no environment is activated: PYTHON=.venv/bin/python
set -euo pipefail
: "${HEAD:?address of the first machine}" "${NODES:?number of machines}" "${NODE_RANK:?0 on the first machine, 1, 2, ...}"
if command -v nvidia-smi > /dev/null; then
  processes=gpu  # as many as CUDA_VISIBLE_DEVICES lets torchrun see
else
  processes=1
fi
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}  # seconds torchrun lets a stop take
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes "$NODES" --node-rank "$NODE_RANK" --nproc-per-node "${PROCESSES:-$processes}" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29500}" --rdzv-id "${RUN_ID:-sengi}" \
  --rdzv-conf "is_host=$([ "$NODE_RANK" = 0 ] && echo 1 || echo 0)" \
  ${ADDRESS:+--local-addr "$ADDRESS"} \
  -m sengi train "$@"
