#!/usr/bin/env bash
# Usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
set -euo pipefail
usage='Usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]'
CONFIG=${1:?$usage} CHECKPOINT=${2:?$usage} GPUS=${3:?$usage}; shift 3
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" "$(dirname "$0")/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"
