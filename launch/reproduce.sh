#!/usr/bin/env bash
# Trains every cell of one of the paper's tables, one after the other, and prints it beside the published figures.
#   bash launch/reproduce.sh TABLE [key.path=value ...]       such as: launch/reproduce.sh cifar data.root=DIR
# TABLE is a folder of configs/paper, or a table's number. Finished runs are skipped, begun ones go on.
# SEEDS="0 1 2" trains each cell with these seeds (default: 0). Uses all GPUs that the replicas divide, or the CPU.
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
[ -n "${1:-}" ] || { sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}" >&2 && exit 2; }
wanted=$1
shift

mapfile -t cells < <(awk -F, -v t="$wanted" 'NR > 1 && ($1 == t || $2 == t) {print $1 "/" $3}' \
    lookaround_ddp/report/published.csv)
if [ ${#cells[@]} -eq 0 ]; then
    "$python" -m lookaround_ddp report --table "$wanted" # says which there are
    exit 2
fi

trap 'exit 130' INT # of a terminal: not only the training that it ends
runs=() failed=()
for cell in "${cells[@]}"; do
    for seed in ${SEEDS:-0}; do
        config=configs/paper/$cell.yaml run=runs/paper/$cell-s$seed
        runs+=("$run")
        [ -f "$run/result.json" ] && continue
        echo "== $cell, seed $seed" >&2
        status=0
        bash launch/torchrun.sh "$config" "out=$run" "seed=$seed" "$@" || status=$?
        [ $status -ne 2 ] || exit 2 # a mistake, which all cells would share
        [ $status -eq 0 ] || failed+=("$run")
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
