#!/usr/bin/env bash
# Trains and makes every cell of the paper's tables, one after the other, and prints them beside the published figures.
#   bash launch/reproduce.sh TABLE ... [key.path=value ...]       such as: launch/reproduce.sh cifar data.root=DIR
# TABLE is a folder of configs/paper, or a table's number; --dry-run lists what would run. Finished runs are skipped,
# begun ones go on. SEEDS="0 1 2" trains each cell with these seeds (default: 0). Uses all GPUs that the replicas
# divide, or the CPU.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
[ $# -ge 1 ] || { sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}" >&2 && exit 2; }
read -ra seeds <<<"${SEEDS:-0}"
exec "$python" -m lookaround_ddp reproduce --seeds "$(IFS=, && echo "${seeds[*]}")" "$@"
