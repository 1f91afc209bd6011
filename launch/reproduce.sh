#!/usr/bin/env bash
# Trains every cell of one of the paper's tables, one after the other, and prints it beside the published figures.
#   bash launch/reproduce.sh TABLE [key.path=value ...]       such as: launch/reproduce.sh cifar data.root=DIR
# TABLE is a folder of configs/paper, or a table's number. Finished runs are skipped, begun ones go on.
# SEEDS="0 1 2" trains each cell with these seeds (default: 0). Uses all GPUs that the replicas divide, or the CPU.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
[ -n "${1:-}" ] || { sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}" >&2 && exit 2; }
wanted=$1
shift

mapfile -t cells < <(awk -F, -v t="$wanted" 'NR > 1 && ($1 == t || $2 == t) {print $1 "/" $3}' \
    lookaround_ddp/report/published.csv)
if [ ${#cells[@]} -eq 0 ]; then
    "$python" -m lookaround_ddp report --table "$wanted" # says which there are
    exit 2
fi

processes() { # of a config: as many as there are GPUs, of which each has whole replicas or a share of one
    "$python" - "$@" <<'EOF'
import sys
import torch
from lookaround_ddp.config import UserError
from lookaround_ddp.config_file import load_config
from lookaround_ddp.data.datasets import open_dataset
try:  # before any is trained: torchrun does not tell a mistake from a crash
    config = load_config(sys.argv[1], sys.argv[2:])
    open_dataset(config.data, config.seed)
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
replicas = len(config.replicas)
most = max(1, torch.cuda.device_count())
print(max(count for count in range(1, most + 1) if count % replicas == 0 or replicas % count == 0))
EOF
}

trap 'exit 130' INT # of a terminal: not only the training that it ends
runs=() failed=()
for cell in "${cells[@]}"; do
    for seed in ${SEEDS:-0}; do
        config=configs/paper/$cell.yaml run=runs/paper/$cell-s$seed
        runs+=("$run")
        [ -f "$run/result.json" ] && continue
        echo "== $cell, seed $seed" >&2
        count=$(processes "$config" "$@")
        command=("$python")
        [ "$count" -eq 1 ] || command+=(-m torch.distributed.run --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:0
            --local-addr=127.0.0.1 --nproc-per-node="$count")
        "${command[@]}" -m lookaround_ddp train "$config" "out=$run" "seed=$seed" "$@" || failed+=("$run")
    done
done

finished=()
for run in "${runs[@]}"; do
    [ ! -f "$run/result.json" ] || finished+=("$run")
done
if [[ ${cells[0]} == ensembles/* ]]; then
    for data in cifar10 cifar100; do
        ours=(runs/paper/ensembles/"$data"-resnet50-lookaround-s*/result.json)
        if [ ${#ours[@]} -ge 2 ]; then
            echo "== $data: ours + logit ensemble" >&2
            "$python" -m lookaround_ddp ensemble "${ours[@]%/result.json}" "$@" || failed+=("$data: ensemble")
        fi
        for seed in ${SEEDS:-0}; do
            soup=(runs/paper/ensembles/"$data"-resnet50-soup-*-s"$seed"/result.json)
            [ ${#soup[@]} -ge 2 ] || continue
            echo "== $data, seed $seed: model soup" >&2
            "$python" -m lookaround_ddp soup "${soup[@]%/result.json}" "$@" --recipe greedy --update-bn ||
                failed+=("$data, seed $seed: soup")
        done
    done
fi
"$python" -m lookaround_ddp report --table "$wanted" "${finished[@]}"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; the same command goes on with them" >&2
    exit 1
fi
