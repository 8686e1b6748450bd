#!/usr/bin/env bash
# Usage: tools/dist_train.sh CONFIG GPUS [options of train.py]
set -euo pipefail
usage='Usage: tools/dist_train.sh CONFIG GPUS [options of train.py]'
CONFIG=${1:?$usage} GPUS=${2:?$usage}; shift 2
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "$@"
