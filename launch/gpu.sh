#!/usr/bin/env bash
# What only a GPU can show, in parts of less than nine minutes each; needs no network, and installs nothing.
#   bash launch/gpu.sh [--cpu] [OUT [PART ...]]
# OUT (runs/gpu) gets a log of each part and figures as JSON; a part that is done is not done again. Parts, in order:
#   tests     the GPU tests, and those of the average with ranks that share a GPU
#   average   the average step beside a bare all-reduce and PyTorch's averager, host and device
#   train     the trainer beside loops written by hand: CIFAR networks at 32 px, ResNet-50 and ViT-B/16 at 224 px
#   data      augmentations on the device beside workers
#   bits      three hosted replicas of ResNet-18 on digits, twice: the same bits
# --cpu tries the same parts without a GPU, at toy size. PYTHON names the interpreter (python3), which has the
# packages, or finds them on PYTHONPATH. A part that fails does not stop the next; the exit status tells.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python=${PYTHON:-python3} toy=""
[ "${1:-}" != --cpu ] || { toy=yes && shift; }
out=${1:-runs/gpu}
[ $# -eq 0 ] || shift
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(tests average train data bits)
mkdir -p "$out"

if [ -z "$toy" ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: PyTorch sees no GPU here: --cpu tries the parts at toy size" >&2
    exit 2
fi

bench() { # FIGURES ARGUMENTS...; figures that are there already are not measured again, so that a part can go on
    local figures=$1
    shift
    [ ! -s "$figures" ] || { echo "== $figures is there" && return; }
    echo "== bench $*"
    timeout 270 "$python" -m lookaround_ddp bench "$@" --json "$figures"
}

do_tests() {
    if [ -n "$toy" ]; then
        "$python" -m pytest -q tests/averaging/test_no_waiting.py tests/averaging/test_gpu.py
    else
        "$python" -m pytest -q -rs tests/averaging/test_gpu.py tests/training tests/data/test_device.py \
            tests/averaging/test_no_waiting.py tests/averaging/test_collectives.py
    fi
}

do_average() {
    local status=0 models=(resnet18 timm:resnet50 timm:vit_base_patch16_224) repeats=31
    [ -z "$toy" ] || models=(resnet8) repeats=3
    for model in "${models[@]}"; do
        for ranks in 1 2; do
            bench "$out/average-${model#*:}-$ranks.json" average --model "$model" --ranks $ranks \
                --repeats $repeats || status=1
        done
    done
    return $status
}

do_train() {
    local status=0 common=(--data noise --pipeline device --channels-last --workers 8 --rounds 1)
    train() {
        bench "$out/train-$(tr -dc 'a-z0-9-' <<<"$*").json" train "${common[@]}" "$@" || status=1
    }
    if [ -n "$toy" ]; then
        common=(--data noise --pipeline device --channels-last --rounds 1 --iterations 12 --batch-size 8)
        train --train-model resnet8
        train --train-model resnet8 --precision bf16 --fast-kernels --image-size 64
        return $status
    fi
    for flags in "" "--fast-kernels" "--fast-kernels --compile"; do
        # shellcheck disable=SC2086  # several words
        train --train-model resnet18 --precision bf16 --iterations 200 $flags
        # shellcheck disable=SC2086
        train --train-model timm:resnet50 --image-size 224 --precision bf16 --iterations 60 --batch-size 128 $flags
    done
    train --train-model resnet50 --precision bf16 --iterations 100 --fast-kernels
    train --train-model timm:vit_base_patch16_224 --image-size 224 --precision bf16 --iterations 60 --batch-size 64 \
        --fast-kernels
    return $status
}

do_data() {
    if [ -n "$toy" ]; then
        bench "$out/data.json" data --workers 1 --batch-size 16 --rounds 1 --consumer resnet8
    else
        bench "$out/data.json" data --workers 8 --rounds 3
    fi
}

do_bits() {
    local network=(model.name=resnet18 epochs=10)
    [ -z "$toy" ] || network=(model.name=resnet8 epochs=2)
    for number in 1 2; do
        rm -rf "$out/run"
        "$python" -m lookaround_ddp train configs/digits/resnet8-lookaround.yaml "${network[@]}" "out=$out/run" || return 1
        cp "$out/run/model.safetensors" "$out/model-$number.safetensors"
    done
    cmp "$out/model-1.safetensors" "$out/model-2.safetensors" && echo "two runs have the same bits"
}

failed=()
for part in "${parts[@]}"; do
    declare -F "do_$part" >/dev/null || { echo "error: no part '$part': see the head of ${BASH_SOURCE[0]}" >&2 && exit 2; }
    [ ! -f "$out/$part.done" ] || { echo "== $part is done: see $out/$part.log" && continue; }
    began=$SECONDS status=0
    export -f bench "do_$part"
    export python toy out
    timeout 535 bash -uo pipefail -c "do_$part" 2>&1 | tee "$out/$part.log" || status=$?
    result="failed ($status)"
    [ $status -ne 0 ] || result="done"
    echo "== $part: $result after $((SECONDS - began)) s"
    if [ $status -eq 0 ]; then touch "$out/$part.done"; else failed+=("$part"); fi
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}; the same command goes on with them" >&2 && exit 1; }
