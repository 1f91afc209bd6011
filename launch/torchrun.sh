#!/usr/bin/env bash
# Trains a config on all of this machine's GPUs that its replicas can share, or on the CPU.
#   bash launch/torchrun.sh CONFIG [key.path=value ...]
# On several machines, the same command on each of them, with
#   NNODES=3 NODE_RANK=0 HEAD=host0 (NODE_RANK from 0 on; HEAD is the host of node 0; PORT there, default 29400)
# Also read: NPROC (processes for each node; default: chosen), MAX_RESTARTS (default 3), OMP_NUM_THREADS (default 1).
# SIGTERM, SIGUSR1 and Ctrl-C: the ranks save and leave, and the run folder has a file PREEMPTED.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
[ $# -ge 1 ] || { sed -n '2,8s/^# //p' "${BASH_SOURCE[0]}" >&2 && exit 2; }
exec "$python" -m lookaround_ddp.distributed.launcher "$@"
